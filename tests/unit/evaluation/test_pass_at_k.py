from __future__ import annotations

import math
from itertools import combinations

import pytest

from rlinf_vlm.evaluation.pass_at_k import pass_at_k, powers_of_two


@pytest.mark.parametrize("samples", range(1, 9))
def test_it_is_the_share_of_subsets_with_a_right_answer(samples: int):
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            subsets = [any(place < correct for place in subset) for subset in combinations(range(samples), k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-14)


def test_by_hand():
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(8, 2, 4) == pytest.approx(1 - 15 / 70)  # C(6, 4) / C(8, 4)


def test_its_ends_are_exact():
    assert pass_at_k(1000, 0, 100) == 0.0
    assert pass_at_k(1000, 901, 100) == 1.0 and pass_at_k(1, 1, 1) == 1.0
    # Where the naive quotient of factorials is out of the range of floats.
    exact = 1 - math.comb(4000, 1000) / math.comb(5000, 1000)
    assert pass_at_k(5000, 1000, 1000) == pytest.approx(exact) and 0 < pass_at_k(5000, 1, 1) < 1


@pytest.mark.parametrize(
    ("samples", "correct", "k", "message"),
    [
        (4, 2, 5, "pass@5 needs at least 5 samples and k of at least 1; there are 4"),
        (0, 0, 1, "there are 0"),
        (4, 2, 0, "k of at least 1"),
        (4, 5, 2, "5 of 4 samples cannot be correct"),
        (4, -1, 2, "-1 of 4"),
    ],
)
def test_what_cannot_be(samples: int, correct: int, k: int, message: str):
    with pytest.raises(ValueError, match=message):
        pass_at_k(samples, correct, k)


def test_the_k_that_are_reported():
    assert [powers_of_two(samples) for samples in (0, 1, 2, 3, 7, 8)] == [
        [],
        [1],
        [1, 2],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 8],
    ]
