from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.evaluation.answered import AnsweredRecord, records_of
from rlinf_vlm.evaluation.answers import SegmentScore, judge, with_blank
from rlinf_vlm.evaluation.files import evaluation_file, evaluations
from rlinf_vlm.evaluation.lines import read_evaluation
from rlinf_vlm.evaluation.recorded import run_figures
from rlinf_vlm.rollout.records import DroppedPrompt, Turn
from rlinf_vlm.types import UserError
from tests.rollouts import scored


def written(file: Path, records: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record.as_json(), ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    return file


def test_what_is_read_is_what_was_written(tmp_path):
    turns = (
        Turn(token_ids=(1,), logprobs=(0.0,), text="look", finish_reason="stop"),
        Turn(observation="a \u2028 cat", token_ids=(2,), logprobs=(0.0,), text="\ud83d", finish_reason="length"),
    )
    records = records_of(
        [
            scored(0, 0, 1 / 3, text="", parts={"math": 0.1}),
            scored(1, 0, 1.0, turns=turns, outcome="max_turns"),
            scored(2, 0, 0.0, status="env_error", turns=(), outcome="env_error"),
        ],
        [scored(0, 1, 0.7 + 0.2 + 0.1, finish_reason="length")],
        [DroppedPrompt(row=3, group=3, reason="b.parquet, row 3: torn")],
        {"high": [scored(row, member, 1.0) for row in (0, 1, 2) for member in range(3)]},
    )
    assert read_evaluation(written(tmp_path / "step_1.jsonl", records)) == records


def test_closed_answers_are_read_too(tmp_path):
    def record(row: int, exact: bool) -> Any:
        score = SegmentScore(row=row, choice=None, logprob=-1.5, num_tokens=3, exact=exact, says="a cup")
        return judge([score], question="what?", answer="a cup", choices=(), choice_index=None)

    records = with_blank([record(0, True), record(1, False)], [record(0, False), record(1, False)])
    file = written(evaluation_file(tmp_path, "eval", 4), [*records, AnsweredRecord(row=2, error="torn")])
    assert read_evaluation(file)[:2] == records
    found = run_figures(tmp_path)
    assert found.steps == {} and found.evaluations["eval", 4] == {
        "eval/samples": 2,
        "eval/dropped_rows": 1,
        "eval/accuracy": 0.5,
        "eval/loss": 0.5,
        "eval/accuracy_blank_image": 0.0,
    }


def test_lines_without_an_outcome_are_read(tmp_path):
    line = {"row": 0, "question": "q", "answer": "5", "prediction": "6", "reward": 0, "correct": False}
    line |= {"status": "ok", "finish_reason": "length", "num_tokens": 4}
    (tmp_path / "step_0.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = read_evaluation(tmp_path / "step_0.jsonl")
    assert found.greedy.outcome == "truncated" and found.greedy.num_tokens == 4


GOOD = {"prediction": "6", "reward": 0, "correct": False, "status": "ok", "finish_reason": "stop", "num_tokens": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "line 1: not a record"),
        ("{}", "'row' is None"),
        (json.dumps({"row": 0, "error": 5}), "'error' 5"),
        (json.dumps({"row": 0} | {**GOOD, "reward": "1"}), "'reward' is a str, not a float"),
        (json.dumps({"row": 0} | {**GOOD, "num_tokens": True}), "'num_tokens' is a bool, not a int"),
        (json.dumps({"row": 0} | {**GOOD, "correct": 1}), "'correct' is a int, not a bool"),
        (json.dumps({"row": 0, **GOOD, "sampled": [{"text": ""}]}), "no 'reward'"),
        (json.dumps({"row": 0, **GOOD, "sampled": [{**GOOD, "text": ""}]}), "unknown 'prediction'"),
        (json.dumps({"row": 0, **GOOD, "settings": {"a": 5}}), "no list of objects"),
        (json.dumps({"row": 0, **GOOD, "settings": 5}), "'settings' is 5"),
        (json.dumps({"row": 0, "num_tokens": 3, "correct": True, "what": 1}), "unknown 'what'"),
        (json.dumps({"row": 0, "token_ids": [1], "reward": 1.0}), "no 'prediction'"),
    ],
)
def test_other_lines_are_told_with_file_and_line(tmp_path, line, message):
    (tmp_path / "step_0.jsonl").write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        read_evaluation(tmp_path / "step_0.jsonl")
    assert message in str(caught.value) and "step_0.jsonl, line 1" in str(caught.value)


def test_files_of_a_run_folder(tmp_path):
    for split, step in (("test", 10), ("eval", 10), ("eval", 2), ("test", 0)):
        written(evaluation_file(tmp_path, split, step), [])
    (tmp_path / "eval" / "step_x.jsonl").touch()
    (tmp_path / "eval" / "step_3.jsonl.partial").touch()
    assert evaluations(tmp_path) == [("test", 0), ("eval", 2), ("eval", 10), ("test", 10)]
    assert evaluations(tmp_path / "nowhere") == []
