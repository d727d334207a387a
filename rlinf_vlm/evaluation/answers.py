"""Closed answers judged by one forward pass.

Greedy decoding gives exactly the target if and only if, at every target position, the arg-max given the target so far
is the target token: by induction, decoding never leaves the target. So one teacher-forced pass tells ``correct``
without generating. Where the arg-max first differs, the tokens up to and including that one are still what greedy
decoding says; after it nothing is known, which a trailing "…" shows.

For a choice question every choice is scored as a whole target (log-likelihood of all its tokens and the end of turn);
the likeliest is the model's choice, the first one on a tie.

A model that does not look answers the same when the images are blank. ``with_blank`` puts what it says then beside what
it says of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentScore:
    """One target of one row, scored.

    choice: which choice it spells (None: an open question); logprob: sum over its num_tokens tokens; exact: every
    arg-max is the target token; says: greedy text up to the first difference.
    """

    row: int
    choice: int | None
    logprob: float
    num_tokens: int
    exact: bool
    says: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRecord:
    """One row of the evaluation set: one line of ``eval/step_N.jsonl``.

    loss: mean negative log-likelihood of the answer's tokens (nats); ..._blank_image: the same when its images were
    blank, where that was asked for; error: why the row could not be used (then nothing else is known of it).
    """

    row: int
    question: str = ""
    answer: str = ""
    prediction: str = ""
    correct: bool = False
    loss: float | None = None
    num_tokens: int = 0
    choices: tuple[str, ...] = ()
    choice_logprobs: tuple[float, ...] = ()
    choice_prediction: str | None = None
    choice_correct: bool | None = None
    prediction_blank_image: str | None = None
    correct_blank_image: bool | None = None
    choice_prediction_blank_image: str | None = None
    choice_correct_blank_image: bool | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Without what does not apply to the row; a row that could not be used has its number and the reason only."""
        if self.error is not None:
            return {"row": self.row, "error": self.error}
        return {name: value for name, value in asdict(self).items() if value is not None and value != ()}


def judge(
    segments: Sequence[SegmentScore], *, question: str, answer: str, choices: Sequence[str], choice_index: int | None
) -> EvalRecord:
    """The record of one row from its scored targets (one, or one for each choice in order)."""
    target = segments[0] if choice_index is None or len(segments) == 1 else segments[choice_index]
    logprobs = tuple(segment.logprob for segment in segments)
    picked = logprobs.index(max(logprobs)) if len(segments) > 1 else None
    return EvalRecord(
        row=target.row,
        question=question,
        answer=answer,
        prediction=target.says,
        correct=target.exact,
        loss=-target.logprob / max(1, target.num_tokens),
        num_tokens=target.num_tokens,
        choices=tuple(choices),
        choice_logprobs=logprobs if picked is not None else (),
        choice_prediction=choices[picked] if picked is not None else None,
        choice_correct=picked == choice_index if picked is not None else None,
    )


def with_blank(records: Sequence[EvalRecord], blank_records: Sequence[EvalRecord]) -> list[EvalRecord]:
    """``records``, each with what was said of the same row when its images were blank.

    Both in any order. A row that could not be used in one of the passes stays as it is. Raises ValueError when the two
    are not of the same rows.
    """
    blanks = {blank.row: blank for blank in blank_records}
    if sorted(blank.row for blank in blank_records) != sorted(record.row for record in records):
        raise ValueError(f"{len(blank_records)} records with blank images are not of the same rows as {len(records)}")
    return [_beside(record, blanks[record.row]) for record in records]


def _beside(record: EvalRecord, blank: EvalRecord) -> EvalRecord:
    if record.error is not None or blank.error is not None:
        return record
    return replace(
        record,
        prediction_blank_image=blank.prediction,
        correct_blank_image=blank.correct,
        choice_prediction_blank_image=blank.choice_prediction,
        choice_correct_blank_image=blank.choice_correct,
    )


def summarise(records: Sequence[EvalRecord]) -> dict[str, float]:
    """Metrics of one evaluation: accuracy over usable rows, loss per token, counts. No usable row: counts only.

    An accuracy is there if it applies to any row: choices, blank images.
    """
    used = [record for record in records if record.error is None]
    metrics: dict[str, float] = {"eval/samples": len(used), "eval/dropped_rows": len(records) - len(used)}
    if not used:
        return metrics
    tokens = sum(record.num_tokens for record in used)
    nll = sum((record.loss or 0.0) * record.num_tokens for record in used)
    metrics["eval/accuracy"] = sum(record.correct for record in used) / len(used)
    metrics["eval/loss"] = nll / max(1, tokens)
    outcomes = {
        "eval/choice_accuracy": [record.choice_correct for record in used],
        "eval/accuracy_blank_image": [record.correct_blank_image for record in used],
        "eval/choice_accuracy_blank_image": [record.choice_correct_blank_image for record in used],
    }
    for name, values in outcomes.items():
        known = [value for value in values if value is not None]
        if known:
            metrics[name] = sum(known) / len(known)
    return metrics
