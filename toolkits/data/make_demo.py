"""Makes the demos in one git-ignored folder: parquet files and a small Qwen2.5-VL with random weights for each.

    python toolkits/data/make_demo.py [--out .demo] [--force]                easy-VQA, for supervised fine-tuning
    python toolkits/data/make_demo.py geometry [--out .demo] [--force] ...   drawn geometry problems, for both

    OUT/easy_vqa/messages/{train,test}.parquet   question, answer, image, image_id
    OUT/easy_vqa/robo2vlm/{train,test}.parquet   id, question, choices, correct_answer, image
    OUT/model/                                   config, weights, tokenizer, processor, chat template
    OUT/demo.json                                the completion marker: version, seed, counts
    OUT/geometry/{train,test}.parquet            problem, answer, images, messages, kind, level
    OUT/geometry/model/                          as above, with a tokenizer for these problems
    OUT/geometry/demo.json                       the geometry's own completion marker

Dataflow: the package easy-vqa (MIT licence, Victor Zhou; installed, nothing is downloaded), or problems that are drawn
-> tables and texts -> tokenizer -> model; all of it written into a folder beside OUT, which is then renamed to OUT.

Invariants: a demo is complete or absent; a completed one is left alone unless forced, and then the other one stays; a
folder that holds no demo is never replaced; the same seed gives the same demo.
Does not: train, download, or touch anything outside OUT and its neighbour ``.NAME.*``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkits.data.demo_tables import VqaRow
    from toolkits.data.geometry_tables import GeometryRow

MARKER = "demo.json"
VERSION = 1
"""Raised when the content of the demo changes."""
SEED = 0
EASY_VQA = "easy_vqa"
GEOMETRY = "geometry"
"""What is made, and the geometry's folder in OUT."""
GEOMETRY_VERSION = 1

ANSWER_WEIGHT = 2000
"""Each answer's weight beside the questions in the tokenizer's training text: each becomes one token early."""
PROMPT_WEIGHT = 20
PROMPTS = (
    "system",
    "user",
    "assistant",
    "You are a helpful assistant.",
    "Answer the question.",
    "Answer with the letter of the correct choice.",
    "Which of these choices is correct?",
    "Think step by step and put the final answer in \\boxed{}.",
)
"""Words of templates and instructions, so that a prompt that uses them stays short."""
SIDES = tuple(range(140, 225, 28))
"""Sides of a geometry picture in pixels: whole image tokens, and room for the labels."""

logger = logging.getLogger("make_demo")


def is_complete(out: Path) -> bool:
    """True where ``out`` holds a finished demo (of any version)."""
    return (out / MARKER).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometrySettings:
    """train_rows, test_rows: problems; side: of a picture, in pixels (one of SIDES); max_level: hardest, 1 to 4."""

    train_rows: int = 4000
    test_rows: int = 500
    side: int = 140
    max_level: int = 4
    seed: int = SEED

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be drawn."""
        if self.side not in SIDES:
            raise ValueError(
                f"--side={self.side}: pictures are {', '.join(map(str, SIDES))} pixels wide; take one of them"
            )
        if not 1 <= self.max_level <= 4:
            raise ValueError(f"--max-level={self.max_level}: kinds have levels 1 to 4; take one of them")
        if min(self.train_rows, self.test_rows) < 1:
            raise ValueError(
                f"--train-rows={self.train_rows} and --test-rows={self.test_rows}: both must be at least 1"
            )


def make_demo(out: Path, *, force: bool = False, max_rows: int | None = None) -> bool:
    """Makes the easy-VQA demo in ``out``; returns False where a completed one was left alone.

    max_rows: at most so many rows a split, for tests; None takes all.
    Raises ValueError where ``out`` exists and is no demo.
    """
    return _make(out, lambda folder: write_demo(folder, max_rows=max_rows), force=force)


def make_geometry(out: Path, settings: GeometrySettings, *, force: bool = False) -> bool:
    """Makes the geometry demo in ``out``/geometry; returns False where a completed one was left alone.

    Raises ValueError where that folder exists and is no demo, or for more rows than there are pictures.
    """
    return _make(out / GEOMETRY, lambda folder: write_geometry(folder, settings), force=force)


def _make(out: Path, write: Callable[[Path], None], *, force: bool) -> bool:
    if is_complete(out) and not force:
        return False
    if (
        out.exists()
        and not is_complete(out)
        and (not out.is_dir() or any(path.name != GEOMETRY for path in out.iterdir()))
    ):
        raise ValueError(f"{out} exists and is not a demo (no {MARKER} in it): remove it or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        aside.chmod(0o755)
        write(aside)
        _swap_in(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def write_demo(folder: Path, *, max_rows: int | None) -> None:
    """Writes tables, model and, last, the marker into the empty ``folder``."""
    # Late: a launcher that finds the demo complete does not wait for torch and transformers.
    from toolkits.data import demo_model, demo_tables

    splits = {split: demo_tables.read_split(split)[:max_rows] for split in demo_tables.SPLITS}
    demo_tables.write_tables(folder / "easy_vqa", splits, SEED)
    texts = tokenizer_texts(splits["train"], demo_tables.KINDS)
    parameters = demo_model.write_model(folder / "model", texts, demo_model.DemoShape(), SEED)
    state = {"version": VERSION, "seed": SEED, "parameters": parameters}
    state |= {f"{split}_rows": len(rows) for split, rows in splits.items()}
    (folder / MARKER).write_text(json.dumps(state, indent=1) + "\n")


def write_geometry(folder: Path, settings: GeometrySettings) -> None:
    """Writes tables, model and, last, the marker into the empty ``folder``."""
    from toolkits.data import demo_model, geometry_tables

    counts = {"train": settings.train_rows, "test": settings.test_rows}
    splits = {
        split: geometry_tables.make_rows(
            split, count, side=settings.side, max_level=settings.max_level, seed=settings.seed
        )
        for split, count in counts.items()
    }
    for split, rows in splits.items():
        geometry_tables.write_rows(rows, split, folder / f"{split}.parquet")
    shape = demo_model.DemoShape(image_side=settings.side)
    parameters = demo_model.write_model(folder / "model", geometry_texts(splits["train"]), shape, settings.seed)
    state = {"version": GEOMETRY_VERSION, "parameters": parameters, **asdict(settings)}
    (folder / MARKER).write_text(json.dumps(state, indent=1) + "\n")


def geometry_texts(rows: Sequence[GeometryRow]) -> Iterator[str]:
    """What the geometry's tokenizer learns from: the problems, the form of the answers, words of prompts.

    Numbers stay digits one by one: the pre-tokenizer cuts them.
    """
    from toolkits.data import geometry_tables

    return chain(
        (row.question for row in rows),
        (geometry_tables.worked(row) for row in rows),
        chain.from_iterable(repeat(text, PROMPT_WEIGHT) for text in PROMPTS),
    )


def tokenizer_texts(rows: Sequence[VqaRow], kinds: Iterable[Iterable[str]]) -> Iterator[str]:
    """What the tokenizer learns from: the questions, the answers bare and as lettered choices, words of prompts."""
    answers = [answer for kind in kinds for answer in kind]
    lettered = [f"{letter}. {answer}\n" for letter in "ABCD" for answer in answers]
    return chain(
        (row.question for row in rows),
        chain.from_iterable(repeat(answer, ANSWER_WEIGHT) for answer in answers),
        chain.from_iterable(repeat(text, PROMPT_WEIGHT) for text in chain(lettered, PROMPTS)),
    )


def _swap_in(aside: Path, out: Path) -> None:
    """Renames ``aside`` to ``out``; an older demo there is removed only after it has left its place.

    A geometry demo in ``out`` moves into the new one.
    """
    old = aside.with_name(aside.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        # Another process finished first: its demo is as good as ours.
        if not is_complete(out):
            raise
    if (old / GEOMETRY).is_dir() and not (out / GEOMETRY).exists():
        (old / GEOMETRY).rename(out / GEOMETRY)
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 0, or 2 with one line for a mistake of the user's."""
    parser = argparse.ArgumentParser(description="Make the demo data and model.")
    parser.add_argument("demo", nargs="?", choices=(EASY_VQA, GEOMETRY), default=EASY_VQA, help="default: easy_vqa")
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="folder of the demos (default: .demo)")
    parser.add_argument("--force", action="store_true", help="make it anew where a completed demo is there")
    drawn = parser.add_argument_group("geometry")
    default = GeometrySettings()
    drawn.add_argument("--train-rows", type=int, default=default.train_rows, help="training problems (%(default)s)")
    drawn.add_argument("--test-rows", type=int, default=default.test_rows, help="test problems (%(default)s)")
    drawn.add_argument("--side", type=int, default=default.side, help="pixels of a picture's side (%(default)s)")
    drawn.add_argument("--max-level", type=int, default=default.max_level, help="hardest kinds, 1 to 4 (%(default)s)")
    drawn.add_argument("--seed", type=int, default=default.seed, help="of problems and weights (%(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.monotonic()
    folder = options.out / GEOMETRY if options.demo == GEOMETRY else options.out
    try:
        if options.demo == GEOMETRY:
            names = asdict(default)
            settings = GeometrySettings(**{name: getattr(options, name) for name in names})
            made = make_geometry(options.out, settings, force=options.force)
        else:
            made = make_demo(options.out, force=options.force)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    if made:
        logger.info("made %s in %.0f s: %s", folder, time.monotonic() - started, _summary(folder))
    else:
        logger.info("%s is complete, left alone (--force makes it anew)", folder)
    return 0


def _summary(out: Path) -> str:
    state = json.loads((out / MARKER).read_text())
    return ", ".join(f"{key} {value}" for key, value in state.items())


if __name__ == "__main__":
    # As a script, only this file's folder is on the path; the repository's root makes ``toolkits`` importable.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    raise SystemExit(main())
