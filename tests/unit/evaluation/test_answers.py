from __future__ import annotations

import math

import pytest

from rlinf_vlm.evaluation.answers import EvalRecord, SegmentScore, judge, summarise, with_blank


def segment(choice: int | None, logprob: float, tokens: int = 2, exact: bool = False, says: str = "?") -> SegmentScore:
    return SegmentScore(row=4, choice=choice, logprob=logprob, num_tokens=tokens, exact=exact, says=says)


def test_open_question():
    record = judge([segment(None, -1.0, 4, True, "red")], question="q", answer="red", choices=(), choice_index=None)
    assert (record.row, record.correct, record.prediction, record.loss) == (4, True, "red", 0.25)
    assert record.choice_correct is None
    assert "choices" not in record.as_json() and "error" not in record.as_json()


def test_choices_are_compared_by_their_whole_likelihood():
    segments = [segment(0, -3.0, 3), segment(1, -1.5, 2, says="B. no"), segment(2, -9.0, 1)]
    record = judge(segments, question="q", answer="A. yes", choices=("A. yes", "B. no", "C. -"), choice_index=0)
    assert record.choice_prediction == "B. no" and record.choice_correct is False
    assert record.loss == 1.0  # of the right answer: 3.0 nats over 3 tokens
    assert record.correct is False


def test_a_tie_takes_the_first_choice():
    record = judge([segment(0, -2.0), segment(1, -2.0)], question="", answer="B", choices=("A", "B"), choice_index=1)
    assert record.choice_prediction == "A" and record.choice_correct is False


def test_summary_by_hand():
    records = [
        EvalRecord(row=0, correct=True, loss=0.5, num_tokens=2, choice_correct=True),
        EvalRecord(row=1, correct=False, loss=2.0, num_tokens=6, choice_correct=True),
        EvalRecord(row=2, correct=False, loss=1.0, num_tokens=2),
        EvalRecord(row=3, error="file row 3: broken"),
    ]
    metrics = summarise(records)
    assert metrics["eval/samples"] == 3 and metrics["eval/dropped_rows"] == 1
    assert metrics["eval/accuracy"] == pytest.approx(1 / 3)
    assert metrics["eval/loss"] == pytest.approx((0.5 * 2 + 2.0 * 6 + 1.0 * 2) / 10)  # per token, not per row
    assert metrics["eval/choice_accuracy"] == 1.0


def test_nothing_usable_has_no_accuracy():
    metrics = summarise([EvalRecord(row=0, error="x")])
    assert metrics == {"eval/samples": 0, "eval/dropped_rows": 1}
    assert not any(math.isnan(value) for value in metrics.values())


def test_a_row_that_could_not_be_used_has_no_answer_in_the_file():
    assert EvalRecord(row=3, error="a.parquet row 3: broken").as_json() == {
        "row": 3,
        "error": "a.parquet row 3: broken",
    }


def test_what_is_said_of_blank_images_stands_beside():
    records = [
        EvalRecord(
            row=4, prediction="red", correct=True, choices=("a", "b"), choice_prediction="a", choice_correct=True
        ),
        EvalRecord(row=2, prediction="a cup", correct=True),
        EvalRecord(row=3, error="broken"),
        EvalRecord(row=0, prediction="on", correct=False),
    ]
    blanks = [
        EvalRecord(row=0, prediction="off", correct=True),
        EvalRecord(row=2, prediction="a pan", correct=False),
        EvalRecord(row=3, error="broken"),
        EvalRecord(row=4, prediction="blue", correct=False, choice_prediction="b", choice_correct=False),
    ]
    both = with_blank(records, blanks)
    assert [record.row for record in both] == [4, 2, 3, 0]
    line = both[0].as_json()
    assert (line["prediction"], line["prediction_blank_image"]) == ("red", "blue")
    assert (line["correct"], line["correct_blank_image"]) == (True, False)
    assert (line["choice_prediction"], line["choice_prediction_blank_image"]) == ("a", "b")
    assert (line["choice_correct"], line["choice_correct_blank_image"]) == (True, False)
    assert "choice_correct_blank_image" not in both[1].as_json(), "an open question has no choices"
    assert both[2].as_json() == {"row": 3, "error": "broken"}
    metrics = summarise(both)
    assert (metrics["eval/accuracy"], metrics["eval/accuracy_blank_image"]) == (
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )
    assert (metrics["eval/choice_accuracy"], metrics["eval/choice_accuracy_blank_image"]) == (1.0, 0.0)
    assert not any("blank" in name for name in summarise(records))


def test_a_row_that_one_pass_could_not_use_is_left_out_of_what_is_said_of_blanks():
    records = [EvalRecord(row=0, correct=True), EvalRecord(row=1, correct=True), EvalRecord(row=2, error="gone")]
    blanks = [EvalRecord(row=0, error="gone"), EvalRecord(row=1, correct=False), EvalRecord(row=2, correct=True)]
    metrics = summarise(with_blank(records, blanks))
    assert (metrics["eval/accuracy"], metrics["eval/accuracy_blank_image"]) == (1.0, 0.0)
    assert (metrics["eval/samples"], metrics["eval/dropped_rows"]) == (2, 1)


@pytest.mark.parametrize("rows", [[0], [0, 1, 1], [0, 2], []])
def test_passes_over_different_rows_are_not_mixed(rows):
    with pytest.raises(ValueError, match="not of the same rows"):
        with_blank([EvalRecord(row=0), EvalRecord(row=1)], [EvalRecord(row=row) for row in rows])
