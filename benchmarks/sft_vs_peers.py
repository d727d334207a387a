"""This trainer and TRL's SFTTrainer on the same rows, the same model and in the same precision, in one run.

    python benchmarks/sft_vs_peers.py                          losses, then throughput
    python benchmarks/sft_vs_peers.py --check losses           ten steps in fp32, loss by loss
    python benchmarks/sft_vs_peers.py --check throughput --only b8-liger-by-cost --out results.jsonl
    python benchmarks/sft_vs_peers.py --small                  a small model on the CPU

Losses: both read the rows in order, in fp32, with one learning rate, AdamW and clipping. Before it trains, TRL's
process sees that TRL's ids, labels and pixels of every row are ours. Throughput: bf16 over fp32 weights; TRL is tried
at each of its variants and compared at its best. Real tokens are counted in both; the line break that our template puts
after a turn is counted for TRL too, which has none (one token a row). Each run is a process of its own, so one that is
out of memory costs itself alone.
Exit status: 0, 1 when a loss is further off than the bar, or when a trainer gave no figures, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

if not __package__:  # run as a script: on the path is this file's folder instead of the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.launching import RunOptions, add_options, positive, prepare, run_options, run_trainer, say
from benchmarks.results import (
    FIGURES,
    Failure,
    Outcome,
    Summary,
    Table,
    append,
    failures,
    figures,
    record,
    relative_difference,
)
from benchmarks.trl_launching import VARIANTS, Variant, check_installed, choose_variants, peer_machine, run_trl
from benchmarks.workload import Workload
from rlinf_vlm.types import UserError

OURS = "rlinf_vlm"
BAR = 1e-3
"""Largest relative difference of two losses of one step."""
LOSS_STEPS, LOSS_ROWS, LOSS_TOKENS = 10, 16, 4096
"""The comparison of losses: steps, rows a step, our tokens a micro-batch."""
LOSS_VARIANT = Variant(rows=LOSS_ROWS, checkpointing=True)
"""A step in one micro-batch: over several, TRL averages their means, whatever their numbers of tokens, as Qwen2.5-VL in
transformers says that it takes no number of tokens (accepts_loss_kwargs=False). Ours is the mean over the step's
tokens; recomputing makes room for it and changes nothing but rounding."""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="This trainer and TRL's SFTTrainer, side by side.")
    add_options(parser, steps=8)
    parser.add_argument("--check", choices=("losses", "throughput", "both"), default="both", help="what to compare")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of TRL's variants ({', '.join(VARIANTS)})")
    parser.add_argument(
        "--peer-steps", type=positive, default=4, help="steps of each TRL run, the first one to warm up"
    )
    parsed = parser.parse_args(arguments)
    try:
        options = run_options(parsed, 1)
        variants = choose_variants(parsed.only, options)
        check_installed()
        if parsed.peer_steps < 2:
            raise UserError(f"--peer-steps={parsed.peer_steps}: the first one is not measured; give at least 2")
        workload = prepare(options)
        good = True
        if parsed.check != "throughput":
            good &= compare_losses(workload, options)
        if parsed.check != "losses":
            good &= compare_throughput(workload, options, variants, parsed.peer_steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(not good)


def compare_losses(workload: Workload, options: RunOptions) -> bool:
    """Ten steps of both in fp32; prints the table; whether all losses are within the bar."""
    needed = LOSS_STEPS * LOSS_ROWS
    if len(workload.lengths) < needed:
        raise UserError(f"--rows={len(workload.lengths)}: the losses are compared over {needed} rows; raise it")
    short = replace(options, samples=LOSS_ROWS, steps=LOSS_STEPS, tokens=LOSS_TOKENS)
    ours = run_trainer("losses", ("actor.fsdp_config.mixed_precision.param_dtype=fp32",), workload, short)
    theirs = run_trl("losses-trl", LOSS_VARIANT, workload, short, bf16=False, compare_labels=True)
    failed = failures([ours.outcome, theirs.outcome])
    if failed:
        print("losses: " + "; ".join(failed))
        return False
    differences = [relative_difference(a.loss, b.loss) for a, b in zip(ours.steps, theirs.steps, strict=True)]
    rows = tuple(
        (str(a.step), f"{a.loss:.7f}", f"{b.loss:.7f}", f"{difference:.1e}")
        for a, b, difference in zip(ours.steps, theirs.steps, differences, strict=True)
    )
    title = f"Loss by step, fp32, {LOSS_ROWS} rows a step: {options.size} model ({peer_machine()})"
    note = (
        f"largest relative difference {max(differences):.1e}, bar {BAR:.0e}; ids, labels and pixels equal in all rows"
    )
    Table(title=title, columns=("step", OURS, "TRL", "difference"), rows=rows, notes=(note,)).show(
        markdown=options.markdown
    )
    pairs = [(a.loss, b.loss) for a, b in zip(ours.steps, theirs.steps, strict=True)]
    append(
        options.out, {"benchmark": "losses", "machine": peer_machine(), "losses": pairs, "largest": max(differences)}
    )
    return max(differences) <= BAR


def compare_throughput(
    workload: Workload, options: RunOptions, variants: Mapping[str, Variant], peer_steps: int
) -> bool:
    """Ours as recommended and each variant of TRL; prints the table; whether both gave figures."""
    about = {"benchmark": "sft_vs_peers", "machine": peer_machine()}
    ours = run_trainer(OURS, (), workload, options)
    append(options.out, record(ours.outcome, ours.steps, **about))
    say(f"{OURS}: {figures(ours.outcome)[0]}")
    short = replace(options, steps=peer_steps, warmup=1)
    theirs: list[Outcome] = []
    for name, variant in variants.items():
        run = run_trl(name, variant, workload, short, bf16=not options.small)
        append(options.out, record(run.outcome, run.steps, **about, variant=asdict(variant)))
        say(f"TRL {name}: {figures(run.outcome)[0]}")
        theirs.append(run.outcome)
    peer_table(ours.outcome, theirs, options).show(markdown=options.markdown)
    return isinstance(ours.outcome, Summary) and any(isinstance(outcome, Summary) for outcome in theirs)


def peer_table(ours: Outcome, theirs: Sequence[Outcome], options: RunOptions) -> Table:
    """One line a run; the last column is how many times faster ours is."""
    measured = [outcome for outcome in theirs if isinstance(outcome, Summary)]
    best = max(measured, key=lambda outcome: outcome.tokens_per_second) if measured else None
    kept = [index for index, name in enumerate(FIGURES) if name not in ("MFU", "team MFU", "data wait")]
    rows = []
    for outcome in (ours, *theirs):
        cells = figures(outcome)
        times = "" if outcome is ours else times_faster(ours, outcome)
        rows.append((outcome.setting, *(cells[index] for index in kept), times))
    notes = list(failures([ours, *theirs]))
    if best is not None and isinstance(ours, Summary):
        notes.insert(0, f"{times_faster(ours, best)} times TRL's best ({best.setting})")
    precision = "fp32" if options.small else "bf16 over fp32 weights"
    title = f"SFT against TRL: {options.size} model, {precision}, {options.samples} rows a step ({peer_machine()})"
    columns = ("trainer", *(FIGURES[index] for index in kept), "ours / its")
    return Table(title=title, columns=columns, rows=tuple(rows), notes=tuple(notes))


def times_faster(ours: Outcome, theirs: Outcome) -> str:
    """Our rate over theirs; empty where one failed."""
    if isinstance(ours, Failure) or isinstance(theirs, Failure):
        return ""
    return f"{ours.tokens_per_second / theirs.tokens_per_second:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
