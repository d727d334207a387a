from __future__ import annotations

import pytest

from rlinf_vlm.evaluation.spread import Spread, spread, spreads


def test_mean_and_deviation_over_runs():
    assert spread([1.0, 2.0, 3.0]) == Spread(mean=2.0, deviation=1.0, runs=3)
    assert spread([0.4, 0.5]).deviation == pytest.approx(0.05 * 2**0.5)
    assert spread([0.25]) == Spread(mean=0.25, deviation=None, runs=1)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_each_metric_is_of_the_runs_that_have_it():
    found = spreads([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 2.0, "c": 0.0}])
    assert {name: (one.mean, one.runs) for name, one in found.items()} == {"a": (2.0, 3), "b": (5.0, 1), "c": (0.0, 1)}
    assert spreads([]) == {}
