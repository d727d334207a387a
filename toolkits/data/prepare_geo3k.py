r"""Makes rows of geometry3k into chats for supervised fine-tuning: the problem with its picture, and the boxed answer.

    python toolkits/data/prepare_geo3k.py --train IN --validation IN --test IN --out FOLDER

    IN     what data.train_data_paths takes: a parquet, json, jsonl or arrow file, a folder, a glob, or a hub id
           "org/name:split"; columns problem, answer, images (bytes, paths or data URLs, as hiyouga/geometry3k and
           chenhegu/geo3k_imgurl have them)
    FOLDER gets train.parquet, validation.parquet, test.parquet with problem, answer, images and
           messages: [{"role": "user", "content": problem}, {"role": "assistant", "content": "Answer: \boxed{answer}"}]

Dataflow: open_table -> the kind geo3k (which finds bad rows) -> rows of plain values -> parquet, part by part.

Invariants: problem and answer are those of the input; a picture's bytes are kept as they are, and one that stood as a
path or data URL is written as PNG, so that FOLDER needs no other file; every picture has been decoded once; a file
appears under its name only when it is whole. Trains with ``dataset_name: messages`` (examples/config/geo3k_sft.yaml),
and as it is with ``dataset_name: geo3k``.
Does not: filter rows, change splits, or parse answers.
Exit status: 0 done, 2 a mistake in the command or the rows, told in one line.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import pyarrow as pa
import pyarrow.parquet as pq

from rlinf_vlm.data.images import load_image
from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.geo3k import Geo3k, target_text
from rlinf_vlm.data.sources import Table, inspect_paths, open_table
from rlinf_vlm.types import RowError, UserError

SPLITS = ("train", "validation", "test")
OPTIONS = {"data.prompt_key": "--prompt-key", "data.answer_key": "--answer-key", "data.image_keys": "--image-key"}
ROWS_A_PART = 256
"""Rows that are held in memory, and rows of a parquet row group."""

logger = logging.getLogger("prepare_geo3k")


class Problems(Geo3k):
    """The kind, with the command's names for the columns that it reads."""

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(option, column) of every column that is read."""
        return tuple((OPTIONS[key], column) for key, column in super().required_columns())


def prepare(source: str, key: str, out: Path, options: KindOptions) -> int:
    """Writes the rows of ``source`` (the value of the command's ``key``) as ``out``; returns their number.

    Raises UserError for a path, a column or a row that cannot be used.
    """
    kind = Problems(options)
    inspect_paths(source, key, kind)
    columns = [column for _, column in kind.required_columns()]
    table = open_table(source, key, columns)
    aside = out.with_name(f".{out.name}.partial")
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        schema = _schema()
        with pq.ParquetWriter(aside, schema) as writer:
            rows = _rows(table, kind, options)
            while part := list(islice(rows, ROWS_A_PART)):
                writer.write_table(pa.Table.from_pylist(part, schema=schema))
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return len(table)


def _rows(table: Table, kind: Geo3k, options: KindOptions) -> Iterator[dict[str, Any]]:
    for index in range(len(table)):
        try:
            yield prepared_row(table[index], kind, options, table.folder_of(index))
        except RowError as error:
            file, row = table.locate(index)
            raise UserError(f"{file} row {row}: {error}; mend or remove the row") from error


def prepared_row(row: Mapping[str, Any], kind: Geo3k, options: KindOptions, base: Path | None) -> dict[str, Any]:
    """Columns problem, answer, images, messages of one row. Raises RowError."""
    conversation = kind.convert(row)
    problem = row[options.prompt_key]
    return {
        "problem": problem,
        "answer": conversation.answer,
        "images": [_picture(ref, base) for ref in conversation.images],
        "messages": [
            {"role": "user", "content": problem},
            {"role": "assistant", "content": target_text(conversation.answer)},
        ],
    }


def _picture(ref: Any, base: Path | None) -> dict[str, Any]:
    """The picture as bytes that decode."""
    image = load_image(ref, base)
    if isinstance(ref, Mapping) and ref.get("bytes") is not None:
        return {"bytes": bytes(ref["bytes"]), "path": ref.get("path")}
    file = BytesIO()
    image.save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def _schema() -> pa.Schema:
    """The columns, with the features of ``datasets`` in the metadata, so that images are known to be images."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {"problem": text, "answer": text, "images": List(Image()), "messages": List({"role": text, "content": text})}
    ).arrow_schema


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 0, or 2 with one line for a mistake of the user's."""
    parser = argparse.ArgumentParser(description="Make rows of geometry3k into chats for supervised fine-tuning.")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", metavar="IN", help=f"rows of OUT/{split}.parquet: a file, folder, glob or hub id"
        )
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared files")
    parser.add_argument("--prompt-key", default="problem", help="column of the problem (default: problem)")
    parser.add_argument("--answer-key", default="answer", help="column of the answer (default: answer)")
    parser.add_argument("--image-key", default="images", help="column of the picture or pictures (default: images)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    columns = KindOptions(prompt_key=options.prompt_key, answer_key=options.answer_key, image_keys=(options.image_key,))
    sources = {split: getattr(options, split) for split in SPLITS if getattr(options, split) is not None}
    try:
        if not sources:
            raise UserError("nothing to prepare: give --train, --validation or --test")
        for split, source in sources.items():
            out = options.out / f"{split}.parquet"
            count = prepare(source, f"--{split}", out, columns)
            logger.info("%s: %d rows of %s", out, count, source)
    except UserError as error:
        logger.error("error: %s", error)
        return 2
    except OSError as error:
        logger.error("error: %s: %s", error.filename or options.out, error.strerror or error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
