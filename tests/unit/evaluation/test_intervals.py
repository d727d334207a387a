from __future__ import annotations

from math import comb

import numpy as np
import pytest

from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval


def test_wilson_by_hand():
    # z = 1.959964. 8 of 10: (0.8 + 0.1920729 +- 1.959964 * sqrt(0.016 + 0.0096036)) / 1.3841459
    assert wilson_interval(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    # 50 of 100: 0.5 +- 1.959964 * sqrt(0.0025 + 0.0000960365) / 1.0384146 = 0.5 +- 0.0961685
    assert wilson_interval(50, 100) == pytest.approx((0.4038315, 0.5961685), abs=1e-6)
    # None of 10: the upper end is z^2 / (n + z^2).
    assert wilson_interval(0, 10) == (0.0, pytest.approx(3.841459 / 13.841459, abs=1e-6))
    assert wilson_interval(8, 10, level=0.5)[0] > wilson_interval(8, 10)[0]


@pytest.mark.parametrize("trials", [1, 2, 30, 601, 10**6])
def test_wilson_holds_its_share_and_mirrors(trials: int):
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        low, high = wilson_interval(successes, trials)
        assert 0 <= low <= successes / trials <= high <= 1 and low < high
        mirrored = wilson_interval(trials - successes, trials)
        assert mirrored == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, trials)[0] == 0.0 and wilson_interval(trials, trials)[1] == 1.0


def test_wilson_holds_the_truth_as_often_as_it_says():
    # The exact chance, over all counts that 40 trials of share 0.1 can give.
    chance = sum(
        comb(40, count) * 0.1**count * 0.9 ** (40 - count)
        for count in range(41)
        if wilson_interval(count, 40)[0] <= 0.1 <= wilson_interval(count, 40)[1]
    )
    assert 0.92 < chance < 0.98


def test_wilson_where_nothing_is_known_or_possible():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, trials in ((3, 2), (-1, 2), (0, -1)):
        with pytest.raises(ValueError, match=f"{successes} of {trials} trials cannot succeed"):
            wilson_interval(successes, trials)


def test_bootstrap_of_two_rows_by_hand():
    # Four equally likely resamples of [0, 1]: means 0, 0.5, 0.5, 1. A quarter is each end: both lie inside of 95 %.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


@pytest.mark.parametrize("rows", [200, 9000])  # 9,000 rows are drawn in several parts
def test_bootstrap_of_many_rows_is_near_the_normal_one(rows: int):
    values = np.random.default_rng(7).uniform(size=rows)
    low, high = bootstrap_interval(list(values))
    half = 1.96 * values.std() / rows**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_bootstrap_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap_interval(random.binomial(4, 0.3, size=60) / 4)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199


def test_bootstrap_repeats():
    values = list(np.random.default_rng(3).uniform(size=50))
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_bootstrap_where_nothing_differs():
    assert bootstrap_interval([0.1] * 7) == (0.1, 0.1)
    assert bootstrap_interval([0.7]) == (0.7, 0.7)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
