"""The rows and the model that every benchmark trains on, written once into a folder.

    python benchmarks/workload.py --out benchmarks/.work [--model 3b|small] [--rows 2304] [--seed 0]

    OUT/rows.parquet      messages, image, tokens, prompt_tokens, answer_tokens, image_tokens
    OUT/model/            config, random weights, tokenizer, processor
    OUT/workload.json     the completion marker: what was asked for

Dataflow: a seed and a row's number -> its lengths (``draw``) -> a JPEG picture and texts of exactly those lengths. A
text is a run of words that are one token each, so it costs no tokenizer; a few rows are rendered as the training
renders them, and must have the lengths that the columns say.

Invariants: a row depends on the seed and its number alone; prompts have 95 to 600 tokens with one image of 64 to 400
merged tokens among them, answers 5 to 200 with the token that ends the turn, samples 450 on average; no two rows share
a picture. A folder whose marker says the same is left as it is.
Does not: hold anything that can be learned. Losses compare trainers here; they say nothing of a model.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rlinf_vlm.types import UserError

ModelSize = Literal["3b", "small"]
VERSION = 1
"""Raised when the content of the folder changes."""
MARKER = "workload.json"

IMAGE_TOKENS = (64, 400)
TEXT_TOKENS = (31, 200)
"""Tokens of a prompt that are not the image's, those of the chat template included."""
ANSWER_TOKENS = (5, 200)
"""Supervised tokens: the answer and the token that ends the turn."""
PATCHES_PER_TOKEN = 4
PIXELS = 28
"""Side of the square of pixels that one merged image token stands for."""
JITTER = 13
"""Pixels by which a picture's side may miss a multiple of PIXELS; the processor's resizing takes them away."""
RENDERED = 8
"""Rows that are rendered to see that the columns say the truth."""

FIRST_WORD = "A"
"""One token in any byte-level tokenizer, whatever stands before it."""
VOCABULARY = """
the a an of in on at by for with from to and or but not is are was were be been has have had do does did will would can
could may might must shall should there here this that these those it its they them their he she his her we our you your
who what which when where why how all any each few many most other some such no only own same so than too very just over
under again once more about above below between into through during before after up down out off red green blue white
black grey small large long short round square left right top bottom front back near far robot arm hand cup plate box
table chair door wall floor light dark open closed empty full hold pick place move push pull turn lift drop reach grasp
see look find show stand lie hang
"""
WORDS = tuple(VOCABULARY.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Lengths of a row to be made. ``columns`` x ``rows``: the image's merged tokens; ``text``: the prompt's other
    tokens, those of the template included; ``answer``: supervised tokens."""

    columns: int
    rows: int
    text: int
    answer: int

    @property
    def image(self) -> int:
        """Image tokens."""
        return self.columns * self.rows

    @property
    def prompt(self) -> int:
        """Tokens before the first supervised one."""
        return self.image + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a workload folder holds."""

    model: ModelSize
    rows: int
    seed: int
    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLengths:
    """Tokens of a row: all; before the first supervised one; supervised; the image's."""

    tokens: int
    prompt_tokens: int
    answer_tokens: int
    image_tokens: int

    @property
    def patches(self) -> int:
        """Patches that the vision tower reads."""
        return self.image_tokens * PATCHES_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A finished workload; ``lengths`` in the order of the file."""

    rows_file: Path
    model: Path
    lengths: tuple[RowLengths, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Tokens that the chat template puts around a prompt's text and image, and after a turn's end."""

    around: int
    after: int


def draw(seed: int, index: int) -> Drawn:
    """The lengths of row ``index``."""
    rng = random.Random(f"{seed}/{index}")
    while True:
        wanted, aspect = rng.randint(*IMAGE_TOKENS), math.exp(rng.uniform(-0.7, 0.7))
        columns = max(1, round(math.sqrt(wanted * aspect)))
        rows = max(1, round(wanted / columns))
        if IMAGE_TOKENS[0] <= columns * rows <= IMAGE_TOKENS[1]:
            break
    return Drawn(columns=columns, rows=rows, text=rng.randint(*TEXT_TOKENS), answer=rng.randint(*ANSWER_TOKENS))


def text_of(tokens: int, rng: random.Random) -> str:
    """A text of ``tokens`` tokens."""
    return " ".join((FIRST_WORD, *rng.choices(WORDS, k=tokens - 1)))


def picture(shape: Drawn, seed: int, index: int) -> bytes:
    """A JPEG of about the image's size in pixels: a smooth random pattern with a little noise, tens of kilobytes."""
    rng = np.random.default_rng([seed, index])
    jitter = rng.integers(-JITTER, JITTER + 1, size=2)
    size = (shape.columns * PIXELS + int(jitter[0]), shape.rows * PIXELS + int(jitter[1]))
    coarse = rng.integers(0, 256, size=(shape.rows, shape.columns, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-12, 13, size=smooth.shape[:2], dtype=np.int16)[..., None]
    file = io.BytesIO()
    Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(file, format="JPEG", quality=85)
    return file.getvalue()


def make_row(seed: int, index: int, template: Template) -> dict[str, Any]:
    """Row ``index`` of the file."""
    shape = draw(seed, index)
    rng = random.Random(f"{seed}/{index}/text")
    return {
        "messages": [
            {"role": "user", "content": "<image>" + text_of(shape.text - template.around, rng)},
            {"role": "assistant", "content": text_of(shape.answer - 1, rng)},
        ],
        "image": {"bytes": picture(shape, seed, index), "path": None},
        "tokens": shape.prompt + shape.answer + template.after,
        "prompt_tokens": shape.prompt,
        "answer_tokens": shape.answer,
        "image_tokens": shape.image,
    }


def is_complete(folder: Path, order: Order) -> bool:
    """Whether ``folder`` holds the workload of ``order``."""
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text()) == asdict(order)


def check_replaceable(folder: Path) -> None:
    """Raises UserError where ``folder`` is neither empty nor a workload."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise UserError(f"{folder}: holds something else than a workload (no {MARKER}); name a new folder")


def make_workload(folder: Path, order: Order) -> None:
    """Makes the workload of ``order`` in ``folder``, in place of another one. Raises UserError where the folder holds
    something else."""
    check_replaceable(folder)
    shutil.rmtree(folder, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write(aside, order)
    (aside / MARKER).write_text(json.dumps(asdict(order)) + "\n")
    aside.rename(folder)


def read_workload(folder: Path) -> Workload:
    """The workload in ``folder``."""
    table = pq.read_table(folder / "rows.parquet", columns=[field.name for field in fields(RowLengths)])
    lengths = tuple(RowLengths(**row) for row in table.to_pylist())
    return Workload(rows_file=folder / "rows.parquet", model=folder / "model", lengths=lengths)


def _write(folder: Path, order: Order) -> None:
    # Late: whoever finds the workload complete does not wait for torch and transformers.
    from benchmarks.workload_model import measure_template, text_renderer, write_model

    write_model(folder / "model", order.model, order.seed)
    render = text_renderer(folder / "model")
    template = measure_template(render)
    jobs = [(order.seed, index, template) for index in range(order.rows)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        rows = pool.starmap(make_row, jobs, chunksize=32)
    for row in rows[:: max(1, len(rows) // RENDERED)]:
        sample = render(row)
        said = (row["tokens"], row["prompt_tokens"], row["answer_tokens"])
        found = (len(sample.input_ids), sample.prompt_length, int((sample.labels >= 0).sum()))
        if found != said:
            raise RuntimeError(f"a row of {said} tokens (all, prompt, answer) renders as {found}")
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=64)


def main(arguments: Sequence[str]) -> int:
    """The command; exit status 0, or 2 with one line for a mistake of the user's."""
    parser = argparse.ArgumentParser(description="Write the rows and the random model that the benchmarks train on.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the workload")
    parser.add_argument("--model", choices=("3b", "small"), default="small", help="3b: the shape of Qwen2.5-VL-3B")
    parser.add_argument("--rows", type=int, default=2304, help="number of rows (default: 2304)")
    parser.add_argument("--seed", type=int, default=0, help="of rows and weights (default: 0)")
    options = parser.parse_args(arguments)
    try:
        if options.rows < 1:
            raise UserError(f"--rows={options.rows}: a workload has rows; give a whole number above 0")
        order = Order(model=options.model, rows=options.rows, seed=options.seed)
        out = options.out.resolve()
        if not is_complete(out, order):
            make_workload(out, order)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    workload = read_workload(out)
    lengths = [row.tokens for row in workload.lengths]
    print(f"{workload.rows_file}: {len(lengths):,} rows of {min(lengths)} to {max(lengths)} tokens,", end=" ")
    print(f"{sum(lengths) / len(lengths):.0f} on average; model {workload.model}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
