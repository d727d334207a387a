"""The same figure of several runs, such as seeds: its mean and its deviation.

    a metric's value in each run --> Spread

The deviation is the sample's (n - 1), what the spread of further runs is estimated by; one run has none. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """mean: over ``runs`` runs; deviation: sample standard deviation, None for one run."""

    mean: float
    deviation: float | None
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Of the values of one figure, one a run. Raises ValueError for no values.

    Example: ``spread([1.0, 2.0, 3.0])`` has mean 2 and deviation 1.
    """
    if not values:
        raise ValueError("no values have no mean")
    return Spread(mean=fmean(values), deviation=stdev(values) if len(values) > 1 else None, runs=len(values))


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Of each metric that any of the runs has, over those that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {name: spread([run[name] for run in runs if name in run]) for name in names}
