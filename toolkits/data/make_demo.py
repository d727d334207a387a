"""Makes the demo: easy-VQA as parquet and a small Qwen2.5-VL with random weights, in one git-ignored folder.

    python toolkits/data/make_demo.py [--out .demo] [--force]

    OUT/easy_vqa/messages/{train,test}.parquet   question, answer, image, image_id
    OUT/easy_vqa/robo2vlm/{train,test}.parquet   id, question, choices, correct_answer, image
    OUT/model/                                   config, weights, tokenizer, processor, chat template
    OUT/demo.json                                the completion marker: version, seed, counts

Dataflow: the package easy-vqa (MIT licence, Victor Zhou; installed, nothing is downloaded) -> tables and texts ->
tokenizer -> model; all of it written into a folder beside OUT, which is then renamed to OUT.

Invariants: OUT is complete or absent; a completed OUT is left alone unless forced; a folder that holds no demo is never
replaced; the same seed gives the same demo.
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
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkits.data.demo_tables import VqaRow

MARKER = "demo.json"
VERSION = 1
"""Raised when the content of the demo changes."""
SEED = 0

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

logger = logging.getLogger("make_demo")


def is_complete(out: Path) -> bool:
    """True where ``out`` holds a finished demo (of any version)."""
    return (out / MARKER).is_file()


def make_demo(out: Path, *, force: bool = False, max_rows: int | None = None) -> bool:
    """Makes the demo in ``out``; returns False where a completed one was left alone.

    max_rows: at most so many rows a split, for tests; None takes all.
    Raises ValueError where ``out`` exists and is no demo.
    """
    if is_complete(out) and not force:
        return False
    if out.exists() and not is_complete(out) and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a demo (no {MARKER} in it): remove it or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        aside.chmod(0o755)
        write_demo(aside, max_rows=max_rows)
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
    """Renames ``aside`` to ``out``; an older demo there is removed only after it has left its place."""
    old = aside.with_name(aside.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        # Another process finished first: its demo is as good as ours.
        if not is_complete(out):
            raise
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 0, or 2 with one line for a mistake of the user's."""
    parser = argparse.ArgumentParser(description="Make the demo data and model.")
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="folder of the demo (default: .demo)")
    parser.add_argument("--force", action="store_true", help="make it anew where a completed demo is there")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    started = time.monotonic()
    try:
        made = make_demo(options.out, force=options.force)
    except ValueError as error:
        logger.error("%s", error)
        return 2
    if made:
        logger.info("made %s in %.0f s: %s", options.out, time.monotonic() - started, _summary(options.out))
    else:
        logger.info("%s is complete, left alone (--force makes it anew)", options.out)
    return 0


def _summary(out: Path) -> str:
    state = json.loads((out / MARKER).read_text())
    return ", ".join(f"{key} {value}" for key, value in state.items())


if __name__ == "__main__":
    # As a script, only this file's folder is on the path; the repository's root makes ``toolkits`` importable.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    raise SystemExit(main())
