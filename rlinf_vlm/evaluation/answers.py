"""Closed answers judged by one forward pass.

Greedy decoding gives exactly the target if and only if, at every target position, the arg-max given the target so far
is the target token: by induction, decoding never leaves the target. So one teacher-forced pass tells ``correct``
without generating. Where the arg-max first differs, the tokens up to and including that one are still what greedy
decoding says; after it nothing is known, which a trailing "…" shows.

For a choice question every choice is scored as a whole target (log-likelihood of all its tokens and the end of turn);
the likeliest is the model's choice, the first one on a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

    loss: mean negative log-likelihood of the answer's tokens (nats); error: why the row could not be used (then
    nothing else is known of it).
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


def summarise(records: Sequence[EvalRecord]) -> dict[str, float]:
    """Metrics of one evaluation: accuracy over usable rows, loss per token, counts. No usable row: counts only."""
    used = [record for record in records if record.error is None]
    metrics: dict[str, float] = {"eval/samples": len(used), "eval/dropped_rows": len(records) - len(used)}
    if not used:
        return metrics
    tokens = sum(record.num_tokens for record in used)
    nll = sum((record.loss or 0.0) * record.num_tokens for record in used)
    metrics["eval/accuracy"] = sum(record.correct for record in used) / len(used)
    metrics["eval/loss"] = nll / max(1, tokens)
    asked = [record for record in used if record.choice_correct is not None]
    if asked:
        metrics["eval/choice_accuracy"] = sum(bool(record.choice_correct) for record in asked) / len(asked)
    return metrics
