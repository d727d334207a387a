from __future__ import annotations

import pytest

from rlinf_vlm.algorithms.lr_schedule import learning_rate


def at(step: int, shape: str, warmup: int = 0, horizon: int = 10, minimum: float = 0.0) -> float:
    return learning_rate(step, peak=1.0, minimum=minimum, shape=shape, warmup_steps=warmup, horizon=horizon)


def test_warmup_starts_above_zero_and_ends_at_the_peak():
    assert [at(step, "cosine", warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_by_hand():
    # 2 warm-up steps, horizon 10: step 6 is half way through the remaining 8.
    assert at(6, "linear", warmup=2) == 0.5
    assert at(6, "linear", warmup=2, minimum=0.2) == pytest.approx(0.6)


def test_cosine_by_hand():
    assert at(5, "cosine") == pytest.approx(0.5)
    assert at(2, "cosine", horizon=8) == pytest.approx(0.8535533905932737)  # (1 + cos(pi / 4)) / 2
    assert at(5, "cosine", minimum=0.5) == pytest.approx(0.75)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_after_the_horizon_the_minimum_stays(shape: str):
    assert [at(step, shape, minimum=0.1) for step in (10, 11, 25, 1000)] == [pytest.approx(0.1)] * 4


def test_constant_and_horizon_inside_the_warmup():
    assert at(99, "constant") == 1.0
    assert at(5, "cosine", warmup=5, horizon=5) == 0.0


def test_unknown_shape():
    with pytest.raises(ValueError, match="known: constant, linear, cosine"):
        at(0, "sine")
