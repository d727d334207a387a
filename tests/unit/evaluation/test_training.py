from __future__ import annotations

import pytest

from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval
from rlinf_vlm.evaluation.training import training_metrics
from tests.rollouts import scored

LOOP = "so x is 5 " * 30


def test_by_hand():
    """Two groups of three: 2 and 0 right (the one that could not be judged is not); 2 answers reflect, one is right."""
    answers = [
        scored(4, 0, 1.0, text="wait, 5"),
        scored(4, 1, 1.0, text="5"),
        scored(4, 2, 0.4, text="wait. wait. check again."),
        scored(7, 0, 0.0, text=LOOP),
        scored(7, 1, 1.0, text="5", status="timeout"),
        scored(7, 2, 0.999, text="5"),
    ]
    found = training_metrics(answers, ("wait", "check again", "yet"))
    low, high = bootstrap_interval([2 / 3, 0])
    assert found == pytest.approx(
        {
            "rollout/accuracy": 2 / 6,
            "rollout/accuracy_low": low,
            "rollout/accuracy_high": high,
            "rollout/repetition": (1 - 4 / 117) / 6,
            "rollout/repeating": 1 / 6,
            "rollout/reflection_ratio": 2 / 6,
            "rollout/reflection_ratio_in_correct_answers": 1 / 2,
            "rollout/reflection_ratio_in_incorrect_answers": 1 / 4,
            "rollout/correct_ratio_in_reflection_texts": 1 / 2,
            "rollout/correct_ratio_in_no_reflection_texts": 1 / 4,
            "reflection/wait": 3,
            "reflection/check_again": 1,
            "reflection/yet": 0,
            "reflection_answers/wait": 2,
            "reflection_answers/check_again": 1,
            "reflection_answers/yet": 0,
        }
    )


def test_one_answer_a_prompt_has_wilsons_interval():
    found = training_metrics([scored(group, 0, 0.0) for group in range(5)], ())
    assert (found["rollout/accuracy_low"], found["rollout/accuracy_high"]) == wilson_interval(0, 5)
    assert found["rollout/accuracy_high"] > 0.3


def test_no_words_and_no_answers():
    assert training_metrics([], ("wait",)) == {}
    found = training_metrics([scored(0, 0, 1.0, text="wait")], ())
    assert not [name for name in found if "reflection" in name] and found["rollout/accuracy"] == 1.0
