"""Supervised fine-tuning on 1, 2, 4 ... GPUs: weak scaling, every rank with the same number of rows a step.

    python benchmarks/sft_scaling.py                     powers of two up to the GPUs that are here
    python benchmarks/sft_scaling.py --gpus 1,4 --out results.jsonl
    python benchmarks/sft_scaling.py --small --gpus 1,2  processes on the CPU

Efficiency is tokens per second and rank over that of the first run. Overrides of the trainer's config may follow.
Exit status: 0 when every run gave figures, 1 when one failed (the table says why), 2 for a mistake in the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.launching import (
    RunOptions,
    add_options,
    available_gpus,
    machine,
    prepare,
    run_options,
    run_trainer,
    say,
)
from benchmarks.results import FIGURES, Failure, Outcome, Table, append, efficiency, failures, figures, record
from rlinf_vlm.types import UserError


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Weak scaling of supervised fine-tuning over GPUs.")
    add_options(parser, steps=10)
    parser.add_argument("--gpus", metavar="N[,N]", help="GPUs of each run (default: 1, 2, 4 ... as many as are here)")
    parser.add_argument("overrides", nargs="*", help="key=value, for every run")
    parsed = parser.parse_args(arguments)
    try:
        sizes = rank_counts(parsed.gpus, small=parsed.small)
        options = run_options(parsed, max(sizes))
        outcomes = measure(options, sizes, parsed.overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scaling_table(sizes, outcomes, options).show(markdown=options.markdown)
    return int(any(isinstance(outcome, Failure) for outcome in outcomes))


def rank_counts(text: str | None, *, small: bool) -> list[int]:
    """The runs' numbers of ranks: those that ``text`` lists, else powers of two up to the GPUs (on a CPU: 1 and 2)."""
    if text is None:
        most = 2 if small or not available_gpus() else available_gpus()
        return [2**power for power in range(most.bit_length())]
    pieces = text.split(",")
    if not all(piece.isdecimal() and int(piece) > 0 for piece in pieces):
        raise UserError(f"--gpus={text}: not a list of numbers of GPUs; write it like 1,2,4")
    return [int(piece) for piece in pieces]


def measure(options: RunOptions, sizes: Sequence[int], overrides: Sequence[str]) -> list[Outcome]:
    """One outcome for each number of ranks."""
    workload = prepare(options)
    outcomes: list[Outcome] = []
    for ranks in sizes:
        run = run_trainer(f"{ranks}-ranks", overrides, workload, options, ranks=ranks)
        outcomes.append(run.outcome)
        say(f"{ranks} ranks: {figures(run.outcome)[0]}")
        about = {"benchmark": "sft_scaling", "machine": machine(), "ranks": ranks, "overrides": overrides}
        append(options.out, record(run.outcome, run.steps, **about))
    return outcomes


def scaling_table(sizes: Sequence[int], outcomes: Sequence[Outcome], options: RunOptions) -> Table:
    """One line a number of ranks."""
    title = (
        f"SFT weak scaling: {options.size} model, {options.samples} rows a rank and step, micro-batches of "
        f"{options.tokens:,} tokens, steps {options.warmup + 1} to {options.steps} ({machine()})"
    )
    rows = []
    for ranks, outcome in zip(sizes, outcomes, strict=True):
        rate, *others = figures(outcome)
        rows.append((str(ranks), rate, *efficiency_cells(ranks, outcome, sizes[0], outcomes[0]), *others))
    columns = ("ranks", FIGURES[0], "tokens/s/rank", "efficiency", *FIGURES[1:])
    return Table(title=title, columns=columns, rows=tuple(rows), notes=failures(outcomes))


def efficiency_cells(ranks: int, outcome: Outcome, first_ranks: int, first: Outcome) -> tuple[str, str]:
    """(tokens per second and rank, efficiency), empty where they are not known."""
    if isinstance(outcome, Failure):
        return "", ""
    rate = outcome.tokens_per_second
    if isinstance(first, Failure):
        return f"{rate / ranks:,.0f}", ""
    return f"{rate / ranks:,.0f}", f"{efficiency(rate, ranks, first.tokens_per_second, first_ranks):.3f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
