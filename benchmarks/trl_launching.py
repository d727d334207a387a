"""TRL's SFTTrainer at given settings, as a process that this module starts and reads.

    Variant + Workload -> TrlSpec (a JSON file) -> python benchmarks/trl_run.py -> figures (a JSON file) -> TrainerRun

Imports neither torch nor TRL: the process does.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.launching import (
    PACKAGES,
    ROOT,
    RunOptions,
    TrainerRun,
    environment,
    failure_reason,
    machine,
    new_run_folder,
    say,
    watch,
)
from benchmarks.results import Failure, StepFigures, summarise
from benchmarks.workload import Workload
from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

INSTALL = "pip install --no-deps trl==1.16.0 liger-kernel==0.8.5"
BY_COST = "batch_rebalance"
"""The sampling of transformers that sorts a step's rows by length and cuts them into micro-batches of even cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """TRL's settings: rows of a micro-batch, and those of ``TrlSpec`` with the same names."""

    rows: int
    sampling: str = "sequential"
    liger: bool = False
    compile: bool = False
    checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlSpec:
    """One run of TRL. variant: its settings; accumulate: micro-batches of a step; bf16: autocast over fp32 weights,
    else fp32 throughout; compare_labels: first see that TRL makes of the rows what we do."""

    model: str
    rows_file: str
    out: str
    steps: int
    accumulate: int
    learning_rate: float
    bf16: bool
    workers: int
    compare_labels: bool
    variant: Variant


VARIANTS = {
    "b8": Variant(rows=8),
    "b8-liger": Variant(rows=8, liger=True),
    "b8-liger-by-length": Variant(rows=8, liger=True, sampling="group_by_length"),
    "b8-liger-by-cost": Variant(rows=8, liger=True, sampling=BY_COST),
    "b4-liger-by-cost": Variant(rows=4, liger=True, sampling=BY_COST),
    "b12-liger-by-cost": Variant(rows=12, liger=True, sampling=BY_COST),
    "b8-liger-compile": Variant(rows=8, liger=True, compile=True),
    "b24-liger-recompute": Variant(rows=24, liger=True, sampling=BY_COST, checkpointing=True),
}
"""TRL 1.16 neither packs rows with images nor runs them padding-free: sampling is what there is against padding."""
CPU_VARIANTS = {"b4": Variant(rows=4), "b8-by-cost": Variant(rows=8, sampling=BY_COST)}
"""Liger's kernels are for GPUs."""


def choose_variants(only: str | None, options: RunOptions) -> dict[str, Variant]:
    """The variants of ``only``, or all for this machine. Raises UserError for a name that is none, and where the rows
    of a step are no multiple of a micro-batch's."""
    known = CPU_VARIANTS if options.small else VARIANTS
    names = list(known) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            guess = nearest(name, known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UserError(f"--only={only}: {name!r} is no variant{hint} (known: {', '.join(known)})")
        if options.samples % known[name].rows:
            raise UserError(f"--samples={options.samples} is no multiple of the {known[name].rows} rows of {name!r}")
    return {name: known[name] for name in names}


def check_installed() -> None:
    """Raises UserError where there is no TRL."""
    if importlib.util.find_spec("trl") is None:
        raise UserError(f"trl is not installed; install it with: {INSTALL}")


def peer_machine() -> str:
    """``machine``, with TRL's versions."""
    return machine((*PACKAGES, "trl", "liger-kernel", "accelerate"))


def run_trl(
    name: str, variant: Variant, workload: Workload, options: RunOptions, *, bf16: bool, compare_labels: bool = False
) -> TrainerRun:
    """Trains with TRL on one GPU, or the CPU. A run that fails, or whose rows differ from ours, is a Failure."""
    folder = new_run_folder(options, name)
    spec = TrlSpec(
        model=str(workload.model),
        rows_file=str(workload.rows_file),
        out=str(folder / "figures.json"),
        steps=options.steps,
        accumulate=options.samples // variant.rows,
        learning_rate=options.learning_rate,
        bf16=bf16,
        workers=options.workers,
        compare_labels=compare_labels,
        variant=variant,
    )
    (folder / "spec.json").write_text(json.dumps(asdict(spec)))
    say(f"TRL {name}: {variant}")
    command = [sys.executable, str(ROOT / "benchmarks" / "trl_run.py"), str(folder / "spec.json")]
    started = time.time()
    with (folder / "run.out").open("w", encoding="utf-8") as out:
        status, _ = watch(command, environment(1), out, folder / "figures.json", options.timeout)
    title = f"TRL {name}"
    if status != 0:
        return TrainerRun(outcome=Failure(setting=title, reason=failure_reason(folder / "run.out", status)))
    found = json.loads(Path(spec.out).read_text())
    if found["differing_rows"]:
        reason = f"failed: its ids, labels or pixels of {found['differing_rows']} rows are not ours"
        return TrainerRun(outcome=Failure(setting=title, reason=reason))
    first = workload.lengths[0]
    uncounted = (first.tokens - first.prompt_tokens - first.answer_tokens) * options.samples
    steps = tuple(_step(line, uncounted) for line in found["steps"])
    first_step_s = found["steps"][0]["ended"] - started
    return TrainerRun(outcome=summarise(title, steps, warmup=options.warmup, first_step_s=first_step_s), steps=steps)


def _step(line: Mapping[str, Any], uncounted: int) -> StepFigures:
    """``uncounted``: the line breaks after the turns, which our rows have and TRL's have not."""
    return StepFigures(
        step=line["step"],
        tokens=round(line["tokens"]) + uncounted,
        seconds=line["seconds"],
        loss=line["loss"],
        peak_gib=line["peak_gib"],
    )
