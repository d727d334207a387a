"""The key figures: a row a run, and a row of mean and standard deviation a group of several.

    Runs, Groups --key_figures--> Table (columns, rows)

Invariants: exact values of metrics.jsonl, nothing thinned; a figure that a run has not on record is "-"; a column that
no run has is not there. The deviation is the sample's (n - 1).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toolkits.report.groups import SEED, Group
from toolkits.report.records import Run

LAST = 10
"""Steps that "last" training figures are the mean of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text. heads: of the columns, the first being the rows' own; strong: rows that sum up others."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A column. value: of a run, None where it has none; text: of the value; note: what a run's cell adds to it."""

    head: str
    value: Callable[[Run], float | None]
    text: Callable[[float], str]
    note: Callable[[Run], str] = lambda run: ""


def key_figures(runs: Sequence[Run], groups: Sequence[Group]) -> Table:
    """The table of all runs."""
    figures = [figure for figure in _figures() if any(figure.value(run) is not None for run in runs)]
    rows, strong = [], []
    for group in groups:
        for place in group.runs:
            seed = runs[place].setting(SEED)
            name = runs[place].label + (f" (seed {seed})" if len(group.runs) > 1 and seed is not None else "")
            rows.append((name, *(_cell(figure, runs[place]) for figure in figures)))
            strong.append(False)
        if len(group.runs) > 1:
            cells = [_spread(figure, [figure.value(runs[place]) for place in group.runs]) for figure in figures]
            rows.append((f"{group.label}: mean ± sd of {len(group.runs)}", *cells))
            strong.append(True)
    return Table(heads=("run", *(figure.head for figure in figures)), rows=tuple(rows), strong=tuple(strong))


def _figures() -> list[Figure]:
    """All columns that there can be."""
    return [
        Figure(head="steps", value=lambda run: run.steps or None, text=lambda value: f"{value:,.0f}"),
        Figure(head="accuracy, first", value=_at("eval/accuracy", 0), text=_share),
        Figure(head="accuracy, last", value=_at("eval/accuracy", -1), text=_share, note=_interval("eval/accuracy")),
        Figure(head="accuracy, best", value=_largest("eval/accuracy"), text=_share, note=_best_step("eval/accuracy")),
        Figure(
            head="test accuracy, last", value=_at("test/accuracy", -1), text=_share, note=_interval("test/accuracy")
        ),
        Figure(head="test accuracy where evaluation is best", value=_test_at_best, text=_share),
        Figure(head="reward, first", value=_at("rollout/reward_mean", 0), text=_number),
        Figure(head=f"reward, last {LAST}", value=_late("rollout/reward_mean"), text=_number),
        Figure(head=f"loss, last {LAST}", value=_late("train/loss"), text=_number),
        Figure(head="evaluation loss, last", value=_at("eval/loss", -1), text=_number),
        Figure(head=f"length, last {LAST}", value=_late("rollout/response_length"), text=lambda value: f"{value:,.1f}"),
        Figure(
            head="largest mean logprob gap", value=_largest("rollout/logprob_gap"), text=lambda value: f"{value:.1e}"
        ),
        Figure(head="tokens/s, median", value=_median("perf/tokens_per_second"), text=lambda value: f"{value:,.0f}"),
        Figure(head="time", value=_seconds, text=_duration),
    ]


def _finite(run: Run, name: str) -> np.ndarray:
    metric = run.metrics.get(name)
    return np.empty(0) if metric is None else metric.values[np.isfinite(metric.values)]


def _at(name: str, place: int) -> Callable[[Run], float | None]:
    return lambda run: float(values[place]) if len(values := _finite(run, name)) else None


def _late(name: str) -> Callable[[Run], float | None]:
    return lambda run: float(values[-LAST:].mean()) if len(values := _finite(run, name)) else None


def _largest(name: str) -> Callable[[Run], float | None]:
    return lambda run: float(values.max()) if len(values := _finite(run, name)) else None


def _median(name: str) -> Callable[[Run], float | None]:
    return lambda run: float(np.median(values)) if len(values := _finite(run, name)) else None


def _best_step(name: str) -> Callable[[Run], str]:
    def said(run: Run) -> str:
        step = _step_of_best(run, name)
        return "" if step is None else f" at step {step}"

    return said


def _step_of_best(run: Run, name: str) -> int | None:
    """The first step at which ``name`` is highest."""
    metric = run.metrics.get(name)
    if metric is None or not np.isfinite(metric.values).any():
        return None
    return int(metric.steps[np.where(np.isfinite(metric.values), metric.values, -np.inf).argmax()])


def _test_at_best(run: Run) -> float | None:
    """What a run reports whose checkpoint is chosen by the evaluation rows."""
    step, test = _step_of_best(run, "eval/accuracy"), run.metrics.get("test/accuracy")
    if step is None or test is None or step not in test.steps:
        return None
    value = float(test.values[test.steps == step][0])
    return value if np.isfinite(value) else None


def _interval(name: str) -> Callable[[Run], str]:
    def said(run: Run) -> str:
        low, high = (_at(f"{name}_{end}", -1)(run) for end in ("low", "high"))
        return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"

    return said


def _seconds(run: Run) -> float | None:
    """Of all steps, evaluations and waits for checkpoints."""
    parts = [float(_finite(run, name).sum()) for name in ("time/step", "time/eval", "time/test", "time/save")]
    return sum(parts) or None


def _cell(figure: Figure, run: Run) -> str:
    value = figure.value(run)
    return "-" if value is None else figure.text(value) + figure.note(run)


def _spread(figure: Figure, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return figure.text(known[0]) if known else "-"
    return f"{figure.text(statistics.fmean(known))} ± {figure.text(statistics.stdev(known))}"


def _share(value: float) -> str:
    return f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
