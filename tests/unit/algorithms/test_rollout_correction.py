from __future__ import annotations

import math

import pytest
import torch

from rlinf_vlm.algorithms.rollout_correction import CorrectionSettings, correct, effective_fraction

LOG2, LOG3 = math.log(2), math.log(3)
ENGINE = torch.tensor([-4.0, -4.0, -4.0])
LENGTHS = torch.tensor([2, 1])


def trained(*gaps: float) -> torch.Tensor:
    return ENGINE + torch.tensor(gaps)


def weights(gaps, **settings) -> list[float]:
    return correct(trained(*gaps), ENGINE, LENGTHS, CorrectionSettings(**settings)).weights.tolist()


def test_levels_by_hand():
    # Gaps log 3, -log 2 | log 2. Tokens: 3 -> cut to 2, 1/2, 2. Answers: 3/2, 3/2, 2. Geometric: sqrt(1.5) twice, 2.
    gaps = (LOG3, -LOG2, LOG2)
    assert weights(gaps, upper=2.5) == pytest.approx([2.5, 0.5, 2.0], rel=1e-5)
    assert weights(gaps, level="sequence") == pytest.approx([1.5, 1.5, 2.0], rel=1e-5)
    assert weights(gaps, level="geometric") == pytest.approx([1.5**0.5, 1.5**0.5, 2.0], rel=1e-5)


def test_mask_by_hand():
    # Ratios 3, 1/2, 2 with [0.6, 2.5]: the first and the second are set to 0.
    assert weights((LOG3, -LOG2, LOG2), mode="mask", upper=2.5, lower=0.6) == pytest.approx([0, 0, 2], rel=1e-5)


def test_sums_by_hand():
    # Gaps log 3, -log 2, 0: |gap| log 6; k1 = -(log 3 - log 2); k3 = (3 - 1 - log 3) + (1/2 - 1 + log 2) + 0;
    # weights 2, 1/2, 1: sum 3.5, squares 5.25; effective 3.5^2 / (3 x 5.25) = 0.777778.
    found = correct(trained(LOG3, -LOG2, 0.0), ENGINE, LENGTHS, CorrectionSettings())
    expected = {"gap": math.log(6), "k1": -math.log(1.5), "k3": 1.5 - math.log(1.5), "cut": 1}
    expected |= {"weight": 3.5, "weight_squared": 5.25}
    assert {name: value.item() for name, value in found.sums.items()} == pytest.approx(expected, rel=1e-5)
    assert found.gap_max.item() == pytest.approx(LOG3, rel=1e-5)
    assert effective_fraction(3.5, 5.25, 3) == pytest.approx(0.777778, rel=1e-5)


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_no_gap_is_exactly_one_without_gradient(level):
    same = ENGINE.clone().requires_grad_()
    found = correct(same, ENGINE, LENGTHS, CorrectionSettings(level=level))
    assert found.weights.tolist() == [1, 1, 1] and not found.weights.requires_grad
    assert found.sums["cut"].item() == 0


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_far_off_and_nothing(level):
    settings = CorrectionSettings(level=level, upper=1e6)
    assert correct(trained(900.0, 900.0, -900.0), ENGINE, LENGTHS, settings).weights.isfinite().all()
    nothing = correct(torch.zeros(0), torch.zeros(0), torch.tensor([0, 0]), settings)
    assert nothing.weights.shape == (0,) and nothing.gap_max.item() == 0
    assert effective_fraction(0.0, 0.0, 0) == 0


def test_bounds_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"lower=3.0 < upper=2.0"):
        CorrectionSettings(lower=3.0)
