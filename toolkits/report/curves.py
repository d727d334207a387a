"""One line of a chart: a metric of a group of runs over the steps, with a band where there is one, thinned.

    Metrics of a group's runs --series_of--> Series --thin--> Series of at most MAX_POINTS points

The line of several runs is their mean at each step, over the runs that have it there; its band is the mean plus and
minus the sample standard deviation (n - 1), of no width where fewer than two runs have the step. The band of one run is
the interval that it has on record (``_low``, ``_high``).
Thinning: above MAX_POINTS steps, neighbouring steps share a point: their mean, with the least and the greatest value as
band, or the mean of the bands where there is one. Values that are not finite are gaps, and are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkits.report.records import Metric, Run

MAX_POINTS = 400
"""Points of a line: more could not be told apart on a screen."""
DIGITS = 5
"""Significant digits of a value in the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line. first, last [n]: steps that a point stands for (the same unless thinned); mean [n]; low, high [n]: its
    band, or None; band: what that is; gaps: values that are not finite."""

    first: np.ndarray
    last: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    band: str = ""
    gaps: int = 0

    @property
    def middle(self) -> np.ndarray:
        """Where the points stand [n]."""
        return (self.first + self.last) / 2

    def as_json(self) -> dict[str, Any]:
        """Lists of plain numbers; null is a gap."""
        made: dict[str, Any] = {"x": self.first.tolist(), "y": numbers(self.mean)}
        if not np.array_equal(self.first, self.last):
            made["e"] = self.last.tolist()
        if self.low is not None and self.high is not None:
            made |= {"lo": numbers(self.low), "hi": numbers(self.high), "band": self.band}
        return made


def series_of(runs: Sequence[Run], name: str) -> Series | None:
    """The line of metric ``name`` of a group's ``runs``; None where no run has it."""
    having = [run for run in runs if name in run.metrics]
    if not having:
        return None
    metrics = [run.metrics[name] for run in having]
    steps, table = align(metrics)
    gaps = sum(int((~np.isfinite(metric.values)).sum()) for metric in metrics)
    if len(having) == 1:
        low, high = (_values_at(having[0].metrics.get(f"{name}_{end}"), steps) for end in ("low", "high"))
        single = Series(first=steps, last=steps, mean=table[0], gaps=gaps)
        if low is None or high is None:
            return thin(single)
        return thin(Series(first=steps, last=steps, mean=table[0], low=low, high=high, band="95 % interval", gaps=gaps))
    mean, deviation = mean_and_deviation(table)
    spread = f"standard deviation over {len(metrics)} runs"
    return thin(
        Series(first=steps, last=steps, mean=mean, low=mean - deviation, high=mean + deviation, band=spread, gaps=gaps)
    )


def mean_of(runs: Sequence[Run], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """All steps [n] at which one of ``runs`` has metric ``name``, and the mean there [n]; None where none has it."""
    metrics = [run.metrics[name] for run in runs if name in run.metrics]
    if not metrics:
        return None
    steps, table = align(metrics)
    return steps, mean_and_deviation(table)[0]


def align(metrics: Sequence[Metric]) -> tuple[np.ndarray, np.ndarray]:
    """All steps of any [n], and the values [metrics, n] with NaN where one has none or an infinite one."""
    steps = np.unique(np.concatenate([metric.steps for metric in metrics]))
    table = np.full((len(metrics), len(steps)), np.nan)
    for row, metric in zip(table, metrics, strict=True):
        row[np.searchsorted(steps, metric.steps)] = np.where(np.isfinite(metric.values), metric.values, np.nan)
    return steps, table


def mean_and_deviation(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [n] and sample standard deviation [n] of each column of ``table`` [runs, n], without its NaNs; the mean of
    none is NaN, the deviation of fewer than two is 0."""
    there = np.isfinite(table)
    count = there.sum(axis=0)
    total = np.where(there, table, 0.0).sum(axis=0)
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    squares = np.where(there, (table - mean) ** 2, 0.0).sum(axis=0)
    return mean, np.sqrt(np.divide(squares, count - 1, out=np.zeros(len(count)), where=count > 1))


def thin(series: Series, points: int = MAX_POINTS) -> Series:
    """``series`` with at most ``points`` points, as the module says."""
    count = len(series.first)
    if count <= points:
        return series
    starts = np.linspace(0, count, points, endpoint=False).astype(np.int64)
    ends = np.append(starts[1:], count)
    if series.low is None or series.high is None:
        low, high = np.fmin.reduceat(series.mean, starts), np.fmax.reduceat(series.mean, starts)
        band = "least and greatest value of neighbouring steps"
    else:
        low, high, band = _bucket_mean(series.low, starts), _bucket_mean(series.high, starts), series.band
    return Series(
        first=series.first[starts],
        last=series.last[ends - 1],
        mean=_bucket_mean(series.mean, starts),
        low=low,
        high=high,
        band=band,
        gaps=series.gaps,
    )


def epochs_of(runs: Sequence[Run]) -> tuple[list[float], list[float]] | None:
    """(steps, epochs) of knots between which the epoch is linear, of the first of ``runs`` that has train/epoch on
    record; step 0 is epoch 0."""
    for run in runs:
        metric = run.metrics.get("train/epoch")
        if metric is None or not np.isfinite(metric.values).any():
            continue
        whole = np.isfinite(metric.values)
        thinned = thin(Series(first=metric.steps[whole], last=metric.steps[whole], mean=metric.values[whole]), 100)
        steps, epochs = thinned.middle.tolist(), thinned.mean.tolist()
        steps[-1], epochs[-1] = float(metric.steps[whole][-1]), float(metric.values[whole][-1])
        return ([0.0, *steps], [0.0, *epochs]) if steps[0] > 0 else (steps, epochs)
    return None


def numbers(values: np.ndarray) -> list[float | None]:
    """Short numbers for JSON, which has no NaN: null."""
    return [rounded(value) for value in values.tolist()]


def rounded(value: float, digits: int = DIGITS) -> float | None:
    """``value`` to ``digits`` significant digits; None unless it is finite."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _values_at(metric: Metric | None, steps: np.ndarray) -> np.ndarray | None:
    """Values [n] at ``steps``, NaN where there is none."""
    if metric is None:
        return None
    known: Mapping[int, float] = dict(zip(metric.steps.tolist(), metric.values.tolist(), strict=True))
    return np.array([known.get(step, math.nan) for step in steps.tolist()])


def _bucket_mean(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    there = np.isfinite(values)
    total = np.add.reduceat(np.where(there, values, 0.0), starts)
    count = np.add.reduceat(there.astype(np.int64), starts)
    return np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
