from __future__ import annotations

import json

import pytest

from rlinf_vlm.evaluation.answered import AnsweredRecord, records_of, summarise
from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval
from rlinf_vlm.rollout.records import DroppedPrompt, Turn
from tests.rollouts import scored


def an_evaluation() -> list[AnsweredRecord]:
    """Rows 0 to 3, of which row 2 cannot be asked; four sampled answers to each, 4, 1 and 0 of them right."""
    greedy = [
        scored(3, 0, 0.5, length=6, finish_reason="length"),
        scored(0, 0, 1.0, length=2),
        scored(1, 0, 0.0, status="timeout", length=4),
    ]
    rewards = {0: [1.0, 1.0, 1.0, 0.9 + 0.1], 1: [0.0, 1.0, 0.0, 0.0], 3: [0.5, 0.9, 0.0, 0.0]}
    sampled = [
        scored(row, member, reward, status="error" if (row, member) == (3, 3) else "ok")
        for row, given in rewards.items()
        for member, reward in enumerate(given)
    ]
    return records_of(greedy, sampled[::-1], [DroppedPrompt(row=2, group=2, reason="a.parquet, row 2: too long")])


def test_records_stand_by_row_with_their_answers():
    records = an_evaluation()
    assert [record.row for record in records] == [0, 1, 2, 3]
    assert [record.error for record in records] == [None, None, "a.parquet, row 2: too long", None]
    assert [[answer.reward for answer in record.sampled] for record in records] == [
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 1.0, 0.0, 0.0],
        [],
        [0.5, 0.9, 0.0, 0.0],
    ]
    assert records_of([]) == []


def test_the_summary_by_hand():
    found = summarise(an_evaluation())
    low, high = wilson_interval(1, 3)
    wanted = {
        "eval/samples": 3,
        "eval/dropped_rows": 1,
        "eval/failed": 2,  # row 1's greedy answer, and one sampled one of row 3
        "eval/accuracy": 1 / 3,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/reward_mean": 0.75,  # of those that were judged
        "eval/response_length": 4.0,
        "eval/truncated": 1 / 3,
        "eval/repetition": 0.0,
        "eval/repeating": 0.0,
        "eval/sampled_accuracy": (1 + 0.25 + 0) / 3,
        "eval/pass@1": (1 + 0.25 + 0) / 3,
        "eval/pass@2": (1 + 0.5 + 0) / 3,
        "eval/pass@4": (1 + 1 + 0) / 3,
    }
    intervals = {
        "eval/sampled_accuracy": [1, 0.25, 0],
        "eval/pass@1": [1, 0.25, 0],
        "eval/pass@2": [1, 0.5, 0],
        "eval/pass@4": [1, 1, 0],
    }
    for name, values in intervals.items():
        wanted[f"{name}_low"], wanted[f"{name}_high"] = bootstrap_interval(values)
    assert found == pytest.approx(wanted)


def test_correct_is_a_reward_of_one_up_to_rounding():
    rewards = [1.0, 0.7 + 0.2 + 0.1, 1.1, 1 - 1e-6, 0.999, 0.0]
    assert 0.7 + 0.2 + 0.1 < 1.0
    records = records_of([scored(row, 0, reward) for row, reward in enumerate(rewards)])
    assert [record.greedy.correct for record in records] == [True, True, True, False, False, False]
    # A failed answer is never right, whatever value it carries.
    (failed,) = records_of([scored(0, 0, 1.0, status="died")])
    assert not failed.greedy.correct
    assert summarise([failed]).keys().isdisjoint({"eval/reward_mean", "eval/sampled_accuracy"})
    assert summarise([failed])["eval/failed"] == 1 and summarise([failed])["eval/accuracy"] == 0.0


def test_parts_of_the_reward_have_a_mean_each():
    """Of the greedy answers that could be judged; one that is called like a metric does not take its place."""
    greedy = [
        scored(0, 0, 0.9, parts={"math": 1.0, "form": 0.0, "accuracy": 7.0}),
        scored(1, 0, 0.1, parts={"math": 0.0, "form": 1.0}),
        scored(2, 0, 1.0, parts={"math": 1.0, "form": 1.0}),
        scored(3, 0, status="timeout", parts={"math": 1.0}),
    ]
    found = summarise(records_of(greedy, [scored(0, 1, 1.0, parts={"math": 0.0})]))
    assert found["eval/math"] == pytest.approx(2 / 3) and found["eval/form"] == pytest.approx(2 / 3)
    assert found["eval/accuracy"] == 0.25 and found["eval/sampled_accuracy"] == 1.0


def test_where_no_row_could_be_asked_there_are_counts_only():
    dropped = records_of([], [], [DroppedPrompt(row=0, group=0, reason="broken")])
    assert summarise(dropped) == {"eval/samples": 0, "eval/dropped_rows": 1, "eval/failed": 0}
    assert summarise([]) == {"eval/samples": 0, "eval/dropped_rows": 0, "eval/failed": 0}


def test_the_k_are_those_that_every_row_has_answers_for():
    greedy = [scored(0), scored(1)]
    uneven = records_of(greedy, [scored(0, member) for member in range(8)] + [scored(1, member) for member in range(3)])
    assert {name for name in summarise(uneven) if "@" in name and name[-1].isdigit()} == {"eval/pass@1", "eval/pass@2"}
    assert "eval/pass@3" in summarise(uneven, [3]) and "eval/pass@1" not in summarise(uneven, [3])
    with pytest.raises(ValueError, match="pass@4 needs at least 4 samples"):
        summarise(uneven, [1, 4])


def test_answers_that_belong_to_no_row_or_to_two():
    with pytest.raises(ValueError, match=r"rows \[1\] have sampled answers and no greedy one"):
        records_of([scored(0)], [scored(1)])
    with pytest.raises(ValueError, match=r"rows \[0\] have more than one greedy answer"):
        records_of([scored(0), scored(0, 1)])
    with pytest.raises(ValueError, match=r"rows \[0\] have more than one"):
        records_of([scored(0)], [], [DroppedPrompt(row=0, group=0, reason="broken")])


def test_a_line_of_the_file():
    first, second, third, _ = (json.loads(json.dumps(record.as_json())) for record in an_evaluation())
    sampled = first.pop("sampled")
    assert first == {
        "row": 0,
        "question": "what?",
        "answer": "5",
        "prediction": "so \\boxed{5}",
        "reward": 1.0,
        "correct": True,
        "status": "ok",
        "finish_reason": "stop",
        "num_tokens": 2,
        "outcome": "completed",
    }
    assert len(sampled) == 4 and sampled[0]["text"] == "so \\boxed{5}" and sampled[0]["correct"] is True
    assert second["status"] == "timeout" and second["correct"] is False
    assert third == {"row": 2, "error": "a.parquet, row 2: too long"}
    (plain,) = records_of([scored(0, 0, 0.0, text="", parts={"math": 0.0})])
    assert plain.as_json()["prediction"] == "" and plain.as_json()["parts"] == {"math": 0.0}
    assert not {"sampled", "settings", "turns", "detail"} & plain.as_json().keys()


def test_settings_have_figures_of_their_own():
    """Rows 0 and 1; "high": four answers to each, 3 and 0 right; "low": one to each."""
    high = [
        scored(row, member, float(row == 0 and member < 3), length=4 + member, text="wait, wait" if member else "no")
        for row in (1, 0)
        for member in (3, 1, 0, 2)
    ]
    low = [scored(0, 0, 0.0, finish_reason="length"), scored(1, 0, status="died")]
    records = records_of([scored(0, 0, 1.0, text="x"), scored(1, 0)], [], [], {"high": high, "low": low})
    found = summarise(records, split="test", words=("wait",), setting_ks={"high": 3})
    assert all(name.startswith("test/") for name in found)
    assert found["test/samples"] == 2 and found["test/failed"] == 1 and found["test/accuracy"] == 0.5
    assert found["test/reflection_ratio"] == 0.0 and "test/correct_ratio_in_reflection_texts" not in found
    own = {name.removeprefix("test/high/"): value for name, value in found.items() if name.startswith("test/high/")}
    accuracy_low, accuracy_high = bootstrap_interval([0.75, 0.0])
    pass_low, pass_high = bootstrap_interval([1.0, 0.0])
    assert own == pytest.approx(
        {
            "accuracy": 0.375,
            "accuracy_low": accuracy_low,
            "accuracy_high": accuracy_high,
            "pass@3": 0.5,
            "pass@3_low": pass_low,
            "pass@3_high": pass_high,
            "response_length": 5.5,
            "truncated": 0.0,
            "repetition": 0.0,
            "repeating": 0.0,
            "reflection_ratio": 6 / 8,
            "reflection_ratio_in_correct_answers": 2 / 3,
            "reflection_ratio_in_incorrect_answers": 4 / 5,
            "correct_ratio_in_reflection_texts": 2 / 6,
            "correct_ratio_in_no_reflection_texts": 1 / 2,
        }
    )
    assert found["test/low/pass@1"] == 0.0 and found["test/low/truncated"] == 0.5
    every = summarise(records, setting_ks={"high": None})
    assert {"eval/high/pass@1", "eval/high/pass@2", "eval/high/pass@4", "eval/low/pass@1"} <= every.keys()
    line = records[0].as_json()
    assert list(line["settings"]) == ["high", "low"] and [one["num_tokens"] for one in line["settings"]["high"]] == [
        4,
        5,
        6,
        7,
    ]
    with pytest.raises(ValueError, match=r"rows \[7\] have sampled answers and no greedy one"):
        records_of([scored(0)], [], [], {"high": [scored(0), scored(7)]})


def test_a_conversation_is_told_turn_by_turn():
    turns = (
        Turn(token_ids=(1, 2), logprobs=(0.0, 0.0), text="look", finish_reason="stop"),
        Turn(observation="a cat", token_ids=(3,), logprobs=(0.0,), text="5", finish_reason="stop"),
    )
    told = records_of([scored(0, 0, 1.0, turns=turns, outcome="max_turns"), scored(1)])
    first = told[0].as_json()
    assert first["prediction"] == "look\n5" and first["num_tokens"] == 3 and first["outcome"] == "max_turns"
    assert first["turns"] == ({"observation": "", "text": "look"}, {"observation": "a cat", "text": "5"})
    assert summarise(told)["eval/max_turns"] == 0.5 and "eval/env_error" not in summarise(told)
