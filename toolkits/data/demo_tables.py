"""easy-VQA as parquet: one table of plain question-answer rows, one of multiple-choice rows.

Dataflow: the installed package ``easy_vqa`` (questions, answers, PNG files) -> VqaRow, sorted by image -> two tables a
split -> parquet with the features of ``datasets`` in the schema, so that ``image`` is known to be an image.

Invariants: rows about one image are adjacent, in the package's order; the image's bytes are the package's PNG as it
is; the same seed gives the same choices.
Does not: decode images, drop or filter rows, know anything of tokens.

The data: easy-VQA by Victor Zhou, MIT licence (4,000 + 1,000 drawn images of 64x64 pixels, 38,575 + 9,673 questions).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "test")
ROW_GROUP = 2000
"""Rows a parquet row group: small enough to read one while another is trained on."""

YES_NO = ("yes", "no")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
KINDS = (YES_NO, COLOURS, SHAPES)
"""The 13 answers by what a question asks for; choices of one row come from one kind."""
MAX_CHOICES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaRow:
    """One question about one image. ``png``: the file's bytes."""

    image_id: int
    question: str
    answer: str
    png: bytes


def read_split(split: str) -> list[VqaRow]:
    """All rows of ``split`` ("train" or "test"), sorted by image. Raises ValueError for another name."""
    import easy_vqa

    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: easy-VQA has {' and '.join(SPLITS)}")
    if split == "train":
        triples, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    else:
        triples, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    pngs = {image_id: Path(path).read_bytes() for image_id, path in paths.items()}
    rows = [
        VqaRow(image_id=image_id, question=question, answer=answer, png=pngs[image_id])
        for question, answer, image_id in zip(*triples, strict=True)
    ]
    return sorted(rows, key=lambda row: row.image_id)


def choices_for(answer: str, rng: random.Random) -> tuple[list[str], int]:
    """Choices of the answer's kind (at most MAX_CHOICES, all different) and the index of ``answer`` among them.

    The right answer's place is uniform. Raises ValueError for an answer of no kind.
    """
    kind = next((kind for kind in KINDS if answer in kind), None)
    if kind is None:
        raise ValueError(f"answer {answer!r} is none of easy-VQA's {sum(map(len, KINDS))} answers")
    others = [other for other in kind if other != answer]
    choices = rng.sample(others, min(MAX_CHOICES - 1, len(others)))
    index = rng.randrange(len(choices) + 1)
    choices.insert(index, answer)
    return choices, index


def messages_columns(rows: Sequence[VqaRow]) -> dict[str, list[Any]]:
    """Columns question, answer, image {bytes, path}, image_id; one entry a row."""
    return {
        "question": [row.question for row in rows],
        "answer": [row.answer for row in rows],
        "image": [_image(row) for row in rows],
        "image_id": [row.image_id for row in rows],
    }


def robo2vlm_columns(rows: Sequence[VqaRow], split: str, seed: int) -> dict[str, list[Any]]:
    """Columns id, question, choices (the text of a Python list), correct_answer (its index), image {bytes, path}."""
    rng = random.Random(f"{split}-{seed}")
    picked = [choices_for(row.answer, rng) for row in rows]
    return {
        "id": [f"easy_vqa_{split}_{number}" for number in range(len(rows))],
        "question": [row.question for row in rows],
        "choices": [repr(choices) for choices, _ in picked],
        "correct_answer": [index for _, index in picked],
        "image": [_image(row) for row in rows],
    }


def write_parquet(columns: dict[str, list[Any]], path: Path) -> None:
    """Writes ``columns`` with the feature types of ``datasets`` in the schema's metadata."""
    from datasets import Features, Image, Value

    special = {"image": Image(), "image_id": Value("int64"), "correct_answer": Value("int64")}
    schema = Features({name: special.get(name, Value("string")) for name in columns}).arrow_schema
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=ROW_GROUP)


def write_tables(folder: Path, splits: Mapping[str, Sequence[VqaRow]], seed: int) -> None:
    """Writes ``folder``/{messages,robo2vlm}/SPLIT.parquet for every split."""
    for split, rows in splits.items():
        write_parquet(messages_columns(rows), folder / "messages" / f"{split}.parquet")
        write_parquet(robo2vlm_columns(rows, split, seed), folder / "robo2vlm" / f"{split}.parquet")


def _image(row: VqaRow) -> dict[str, Any]:
    return {"bytes": row.png, "path": f"{row.image_id}.png"}
