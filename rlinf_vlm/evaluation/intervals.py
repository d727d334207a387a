"""How sure a figure of an evaluation is: intervals that hold the true value in 95 % of the cases. Pure, seeded.

A share of rows (right or wrong) has the Wilson interval. A mean over rows of anything else (the share of right answers
among several, pass@k) has the bootstrap's, over rows, since the answers to one row are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
DRAWS = 1000
AT_ONCE = 1 << 22
"""Rows that are drawn at a time, over all draws: bounds the memory to some 70 MB."""


def wilson_interval(successes: int, trials: int, *, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of the share successes / trials, in [0, 1].

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927): the shares that a test would
    not reject. Unlike mean +- 2 deviations it holds near 0 and 1 and with few trials. Degenerate: no success has low
    exactly 0, successes only have high exactly 1, no trials (0, 1): nothing is known. Raises ValueError for impossible
    counts.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} trials cannot succeed")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight * weight / 4) / (1 + weight)
    return (middle - half if successes else 0.0), (middle + half if successes < trials else 1.0)


def bootstrap_interval(
    values: Sequence[float], *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the mean of ``values`` [rows], by the percentiles of the means of ``draws`` resamples.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. The same values and seed give the same
    interval. Degenerate: equal values, or one, give an interval of width 0: what did not occur in the rows is not
    resampled, so it says nothing of how many rows there are. Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("no values have no mean")
    data = np.asarray(values, dtype=np.float64)
    rows = len(data)
    if (data == data[0]).all():
        return float(data[0]), float(data[0])
    random = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    step = max(1, AT_ONCE // rows)
    for first in range(0, draws, step):
        picked = random.integers(rows, size=(min(step, draws - first), rows))
        means.append(data[picked].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
