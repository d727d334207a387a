"""What runs recorded, in figures: ``python -m rlinf_vlm.evaluation RUN_DIR [RUN_DIR ...] [--words ...] [--out FILE]``.

    run folders --recorded--> RunFigures --tables--> terminal, FILE.json

For every step: accuracy of the training answers, length, clip ratio, reflection, repetition; for every evaluation:
accuracy and pass@k at each setting; over several folders, such as seeds: mean and deviation. Exit status: 0, or 2 and
one line for a folder or file that cannot be used. Loads no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlinf_vlm.evaluation.recorded import RunFigures, run_figures
from rlinf_vlm.evaluation.reflection import ReflectionWords
from rlinf_vlm.evaluation.tables import as_json, run_tables, spread_tables
from rlinf_vlm.types import UserError

WIDTH = 180
"""Columns of a table that goes to a file or a pipe."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the folders, writes tables to standard output; returns the exit status."""
    given = _parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    try:
        runs = _runs(given.run_dir, given.words)
        if given.out is not None:
            _write(given.out, runs)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for tables in [*(run_tables(run) for run in runs), *([spread_tables(runs)] if len(runs) > 1 else [])]:
        for heading, table in tables.items():
            console.print(heading, markup=False, highlight=False, soft_wrap=True)
            console.print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rlinf_vlm.evaluation",
        description="Accuracy, pass@k, reflection and repetition of recorded runs.",
    )
    parser.add_argument("run_dir", nargs="+", type=Path, help="folder of a run, such as logs/20260101-120000")
    parser.add_argument(
        "--words", nargs="*", help="words and phrases that count as reflection; left out: those of each run's config"
    )
    parser.add_argument("--out", type=Path, help="write all figures as JSON to this file")
    return parser


def _runs(folders: Sequence[Path], words: Sequence[str] | None) -> list[RunFigures]:
    """Raises UserError."""
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise UserError("a run folder is given twice, so its spread over runs would be too small; give each once")
    if words is not None:
        try:
            words = ReflectionWords(words).words
        except ValueError as error:
            raise UserError(f"--words: {error}; give each word once") from error
    return [run_figures(folder, words) for folder in folders]


def _write(file: Path, runs: Sequence[RunFigures]) -> None:
    """Raises UserError where the file cannot be written."""
    try:
        file.write_text(json.dumps(as_json(runs), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out={str(file)!r} cannot be written to ({error.strerror}); choose another file") from error


if __name__ == "__main__":
    sys.exit(main())
