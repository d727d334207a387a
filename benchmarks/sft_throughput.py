"""Tokens per second of supervised fine-tuning, and what each switch is worth.

    python benchmarks/sft_throughput.py                          the default table
    python benchmarks/sft_throughput.py --only recommended,no-compile --steps 12 --out results.jsonl
    python benchmarks/sft_throughput.py --small                  a small model on the CPU

Each setting is a run of its own: Ray, FSDP2, rows decoded and rendered by loading processes, clipping and AdamW.
Rates are medians over the steps after the warm-up, of real tokens; the ratio is to the first setting that is run.
Exit status: 0 when every setting gave figures, 1 when one failed (the table says why), 2 for a mistake in the options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.launching import RunOptions, add_options, machine, positive, prepare, run_options, run_trainer, say
from benchmarks.results import FIGURES, Failure, Outcome, Table, append, failures, figures, ratio, record
from benchmarks.settings import all_settings, choose_settings, unpacked_rows
from rlinf_vlm.types import UserError


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Tokens per second of supervised fine-tuning, and what each switch is worth."
    )
    add_options(parser, steps=10)
    parser.add_argument("--only", metavar="NAME[,NAME]", help="settings to run, the first being what ratios are to")
    parser.add_argument(
        "--gpus", type=positive, default=1, help="GPUs (on the CPU: processes) of each run (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="print the settings and what they override, and end")
    parsed = parser.parse_args(arguments)
    if parsed.list:
        for name, setting in all_settings(unpacked_rows=1).items():
            print(f"{name:20} {' '.join(setting.overrides) or '-'}")
        return 0
    try:
        options = run_options(parsed, parsed.gpus)
        outcomes = measure(options, parsed.only, parsed.gpus)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    throughput_table(outcomes, options, parsed.gpus).show(markdown=options.markdown)
    return int(any(isinstance(outcome, Failure) for outcome in outcomes))


def measure(options: RunOptions, only: str | None, ranks: int) -> list[Outcome]:
    """One outcome a setting. Raises UserError for a setting that does not exist, before anything is started."""
    choose_settings(all_settings(unpacked_rows=1), only, small=options.small)
    workload = prepare(options)
    settings = all_settings(unpacked_rows=unpacked_rows(workload.lengths, options.samples, options.tokens))
    outcomes: list[Outcome] = []
    for name, setting in choose_settings(settings, only, small=options.small).items():
        run = run_trainer(name, setting.overrides, workload, options, ranks=ranks)
        outcomes.append(run.outcome)
        say(f"{name}: {figures(run.outcome)[0]}")
        about = {"benchmark": "sft_throughput", "machine": machine(), "ranks": ranks}
        append(options.out, record(run.outcome, run.steps, **about, overrides=setting.overrides))
    return outcomes


def throughput_table(outcomes: Sequence[Outcome], options: RunOptions, ranks: int) -> Table:
    """One line a setting."""
    title = (
        f"SFT throughput: {options.size} model, {ranks} x {options.samples} rows a step, micro-batches of "
        f"{options.tokens:,} tokens, steps {options.warmup + 1} to {options.steps} ({machine()})"
    )
    rows = []
    for outcome in outcomes:
        rate, *others = figures(outcome)
        rows.append((outcome.setting, rate, ratio(outcome, outcomes[0]), *others))
    return Table(
        title=title, columns=("setting", FIGURES[0], "ratio", *FIGURES[1:]), rows=tuple(rows), notes=failures(outcomes)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
