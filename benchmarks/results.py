"""What a run's figures come to, and how they are shown. Arithmetic only: no process, no torch.

    lines of metrics.jsonl, lengths of the rows --``step_figures``--> StepFigures --``summarise``--> Summary -> Table

The training counts the operations that a step needs (``rlinf_vlm/models/flops.py``: attention by length, the head on
supervised tokens only). The team's formula takes all weights of the language model for every token and all of the
vision tower for every patch, six operations each. Both are set against the same measured matrix product.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.workload import Workload
from rlinf_vlm.models.flops import ModelShape, Work, step_flops
from rlinf_vlm.types import UserError

WIDTH = 160
"""Characters of a line where standard output is no terminal."""
WINDOW = 64
"""Patches of a full window of the vision tower, as the training counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One optimizer step. tokens: real ones, image tokens included, all ranks; seconds: of the slowest rank; peak_gib:
    of the fullest rank so far; mfu, team_mfu, data_wait: parts of 1; matmul: measured FLOP/s of all ranks. None: not
    known of that trainer."""

    step: int
    tokens: int
    seconds: float
    loss: float
    peak_gib: float
    mfu: float | None = None
    team_mfu: float | None = None
    data_wait: float | None = None
    matmul: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second, all ranks."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run's steps after warm-up. Rates are medians over steps; tokens_per_second, slowest and fastest are of all
    ranks together; first_step_s: seconds from the command to the end of the first step."""

    setting: str
    tokens_per_second: float
    slowest: float
    fastest: float
    peak_gib: float
    first_step_s: float
    mfu: float | None = None
    team_mfu: float | None = None
    data_wait: float | None = None
    matmul: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run that gave no figures, and why."""

    setting: str
    reason: str


Outcome = Summary | Failure


def step_figures(
    lines: Sequence[Mapping[str, Any]], workload: Workload, shape: ModelShape, global_batch: int
) -> list[StepFigures]:
    """The steps in ``lines`` of metrics.jsonl, of a run that read ``workload`` in order, ``global_batch`` rows a step.

    Raises ValueError when a step did not read the rows that it should have.
    """
    steps = []
    for line in lines:
        if "perf/tokens_per_second" not in line:
            continue
        rows = step_rows(workload, line["step"], global_batch)
        work = Work(
            tokens=sum(row.tokens for row in rows),
            supervised=sum(row.answer_tokens for row in rows),
            squared_lengths=sum(row.tokens**2 for row in rows),
            patches=sum(row.patches for row in rows),
            squared_patches=sum(row.patches**2 for row in rows),
            squared_windows=sum(row.patches for row in rows) * WINDOW,
        )
        if work.tokens != line["train/tokens"]:
            raise ValueError(f"step {line['step']} has {line['train/tokens']} tokens, its rows {work.tokens}")
        needed, mfu, seconds = step_flops(shape, work).total, line["perf/mfu"], line["time/step"]
        steps.append(
            StepFigures(
                step=line["step"],
                tokens=work.tokens,
                seconds=seconds,
                loss=line["train/loss"],
                mfu=mfu,
                team_mfu=mfu * team_flops(shape, work) / needed,
                data_wait=line["perf/data_wait"],
                peak_gib=line["perf/peak_memory_gib"],
                matmul=needed / seconds / mfu,
            )
        )
    return steps


def step_rows(workload: Workload, step: int, global_batch: int) -> list[Any]:
    """The lengths of the rows of step number ``step`` (the first is 1), read in order over and over."""
    count = len(workload.lengths)
    return [workload.lengths[index % count] for index in range((step - 1) * global_batch, step * global_batch)]


def team_flops(shape: ModelShape, work: Work) -> float:
    """Six operations for each weight of the language model and token, and for each of the vision tower and patch."""
    vision = shape.embed_weights + shape.vision_weights + shape.merger_weights * shape.patches_per_feature
    return 6 * ((shape.language_weights + shape.head_weights) * work.tokens + vision * work.patches)


def summarise(setting: str, steps: Sequence[StepFigures], *, warmup: int, first_step_s: float) -> Summary:
    """The figures of ``steps`` past the first ``warmup``. Raises ValueError when none is left."""
    kept = steps[warmup:]
    if not kept:
        raise ValueError(f"{len(steps)} steps and a warm-up of {warmup} leave nothing to measure")
    rates = [step.tokens_per_second for step in kept]
    return Summary(
        setting=setting,
        tokens_per_second=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        peak_gib=kept[-1].peak_gib,
        first_step_s=first_step_s,
        mfu=_median([step.mfu for step in kept]),
        team_mfu=_median([step.team_mfu for step in kept]),
        data_wait=_median([step.data_wait for step in kept]),
        matmul=_median([step.matmul for step in kept]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def efficiency(rate: float, ranks: int, first_rate: float, first_ranks: int) -> float:
    """Rate of a rank, relative to that of a rank of the first run."""
    return (rate / ranks) / (first_rate / first_ranks)


def relative_difference(ours: float, theirs: float) -> float:
    """How far two losses are apart, relative to theirs."""
    return abs(ours - theirs) / abs(theirs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text; the first column is a name, the others are numbers. ``notes`` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def show(self, *, markdown: bool) -> None:
        """Prints the table: as markdown, or ruled for a terminal."""
        if markdown:
            print(self.markdown())
            return
        table = RichTable(*self.columns)
        for column in table.columns:
            column.justify, column.no_wrap = "right", True
        table.columns[0].justify = "left"
        for row in self.rows:
            table.add_row(*row)
        print(self.title)
        # A file or a pipe has no width of its own.
        Console(width=None if sys.stdout.isatty() else WIDTH).print(table)
        for note in self.notes:
            print(note)

    def markdown(self) -> str:
        """The table as it goes into a README."""
        rule = ("---", *["---:"] * (len(self.columns) - 1))
        lines = [" | ".join(cells) for cells in (self.columns, rule, *self.rows)]
        return "\n".join([self.title, "", *(f"| {line} |" for line in lines), *(f"\n{note}" for note in self.notes)])


FIGURES = ("tokens/s", "slowest..fastest", "MFU", "team MFU", "data wait", "peak GiB", "first step, s")
"""What ``figures`` fills in."""


def figures(outcome: Outcome) -> tuple[str, ...]:
    """An outcome's cells under FIGURES; of one that failed, a word and empty cells (``failures`` has the rest)."""
    if isinstance(outcome, Failure):
        return (outcome.reason.partition(":")[0], *[""] * (len(FIGURES) - 1))
    return (
        f"{outcome.tokens_per_second:,.0f}",
        f"{outcome.slowest:,.0f}..{outcome.fastest:,.0f}",
        "" if outcome.mfu is None else f"{outcome.mfu:.3f}",
        "" if outcome.team_mfu is None else f"{outcome.team_mfu:.3f}",
        "" if outcome.data_wait is None else f"{outcome.data_wait:.1%}",
        f"{outcome.peak_gib:.1f}",
        f"{outcome.first_step_s:.0f}",
    )


def failures(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """One line for each that failed."""
    return tuple(f"{outcome.setting}: {outcome.reason}" for outcome in outcomes if isinstance(outcome, Failure))


def ratio(outcome: Outcome, reference: Outcome) -> str:
    """The cell of an outcome's rate over the reference's; empty where one of them failed."""
    if isinstance(outcome, Failure) or isinstance(reference, Failure):
        return ""
    return f"{outcome.tokens_per_second / reference.tokens_per_second:.2f}"


def check_appendable(path: Path | None) -> None:
    """Raises UserError where ``append`` could not write to ``path``: better before the runs than after them."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--out={path}: cannot be written ({error.strerror}); name another file") from error


def append(path: Path | None, record: Mapping[str, Any]) -> None:
    """Adds one JSON line to ``path`` (None: nowhere)."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def record(outcome: Outcome, steps: Sequence[StepFigures] = (), **more: Any) -> dict[str, Any]:
    """An outcome with its steps, for ``append``."""
    return {**more, **asdict(outcome), "steps": [asdict(step) for step in steps]}
