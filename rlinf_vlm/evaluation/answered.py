"""Answers that the policy generated to the evaluation rows, graded by the reward: one record a row, and their summary.

    ScoredRollout of the greedy pass, and of the sampled one --records_of--> AnsweredRecord --summarise--> metrics

An answer is correct when its reward is 1 (``CORRECT``), whatever the reward is made of. Invariants: an answer that the
reward could not judge is not correct, and is counted under ``eval/failed``; a row that could not be asked is in no
share, and is counted under ``eval/dropped_rows``. Plain Python.
Not here: closed answers judged by one forward pass (``answers``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval
from rlinf_vlm.evaluation.pass_at_k import pass_at_k, powers_of_two
from rlinf_vlm.rewards.protocol import JUDGED, OK
from rlinf_vlm.rollout.records import DroppedPrompt, FinishReason, ScoredRollout

CORRECT = 1.0 - 1e-9
"""The least reward of a correct answer: 1, less what a weighted sum is rounded by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAnswer:
    """One answer. text: without special tokens; num_tokens: that were generated; reward, parts, status, detail: as in
    ``ScoredRollout``."""

    text: str
    reward: float
    correct: bool
    status: str
    finish_reason: FinishReason
    num_tokens: int
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        """Without parts and detail where there are none."""
        return {name: value for name, value in asdict(self).items() if value not in ({}, "") or name == "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRecord:
    """One row of the evaluation set: one line of ``eval/step_N.jsonl``.

    question, answer: of the row; greedy: the likeliest answer, token by token; sampled: others, in the order of
    members; error: why the row could not be asked (then nothing else is known of it, and greedy is None).
    """

    row: int
    question: str = ""
    answer: str = ""
    greedy: GradedAnswer | None = None
    sampled: tuple[GradedAnswer, ...] = ()
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The greedy answer's fields stand beside the row's, its text as ``prediction``, as in an evaluation without
        generation; a row that could not be asked has its number and the reason only."""
        if self.greedy is None:
            return {"row": self.row, "error": self.error}
        greedy = self.greedy.as_json()
        line = {"row": self.row, "question": self.question, "answer": self.answer, "prediction": greedy.pop("text")}
        line |= greedy
        if self.sampled:
            line["sampled"] = [answer.as_json() for answer in self.sampled]
        return line


def records_of(
    greedy: Sequence[ScoredRollout], sampled: Sequence[ScoredRollout] = (), dropped: Sequence[DroppedPrompt] = ()
) -> list[AnsweredRecord]:
    """A record for each row that has a greedy answer, or was dropped; by row.

    Each in any order; sampled: any number of answers to a row. Raises ValueError for two greedy answers to one row, and
    for a row with sampled answers and no greedy one, or one that is dropped as well.
    """
    others: dict[int, list[ScoredRollout]] = {}
    for answer in sorted(sampled, key=lambda answer: answer.rollout.member):
        others.setdefault(answer.rollout.row, []).append(answer)
    records = [
        AnsweredRecord(
            row=answer.rollout.row,
            question=answer.rollout.question,
            answer=answer.rollout.answer,
            greedy=_graded(answer),
            sampled=tuple(_graded(other) for other in others.pop(answer.rollout.row, ())),
        )
        for answer in greedy
    ]
    if others:
        raise ValueError(f"rows {sorted(others)[:5]} have sampled answers and no greedy one")
    records += [AnsweredRecord(row=prompt.row, error=prompt.reason) for prompt in dropped]
    twice = sorted(row for row, count in Counter(record.row for record in records).items() if count > 1)
    if twice:
        raise ValueError(f"rows {twice[:5]} have more than one greedy answer, or are dropped as well")
    return sorted(records, key=lambda record: record.row)


def summarise(records: Sequence[AnsweredRecord], ks: Sequence[int] | None = None) -> dict[str, float]:
    """Metrics of one evaluation, under ``eval/``. No usable row: counts only.

    Of the greedy answers: accuracy (with _low and _high, the 95 % Wilson interval), reward_mean (of those that could be
    judged), each part of the reward by its name (mean over those that have it), response_length (mean, in tokens),
    truncated (share that came to the limit of tokens). Of the sampled ones,
    where there are any: sampled_accuracy, the mean over rows of the share that is correct, and pass@k for each of
    ``ks`` (null: 1, 2, 4, .. up to the answers of a row), each with _low and _high, the 95 % bootstrap interval over
    rows. failed: greedy and sampled answers that could not be judged. Raises ValueError for a k above the answers of
    the row that has fewest.
    """
    used = [record for record in records if record.greedy is not None]
    greedy = [record.greedy for record in records if record.greedy is not None]
    answers = [*greedy, *(answer for record in used for answer in record.sampled)]
    metrics: dict[str, float] = {
        "eval/samples": len(used),
        "eval/dropped_rows": len(records) - len(used),
        "eval/failed": sum(answer.status != OK for answer in answers),
    }
    if not used:
        return metrics
    metrics |= _part_means(greedy)  # first: a part that is called as one of those below does not hide it
    right = sum(answer.correct for answer in greedy)
    metrics["eval/accuracy"] = right / len(greedy)
    metrics["eval/accuracy_low"], metrics["eval/accuracy_high"] = wilson_interval(right, len(greedy))
    rewards = [answer.reward for answer in greedy if answer.status in JUDGED]
    if rewards:
        metrics["eval/reward_mean"] = fmean(rewards)
    metrics["eval/response_length"] = fmean(answer.num_tokens for answer in greedy)
    metrics["eval/truncated"] = fmean(answer.finish_reason == "length" for answer in greedy)
    return metrics | _sampled_metrics([record.sampled for record in used if record.sampled], ks)


def _part_means(answers: Sequence[GradedAnswer]) -> dict[str, float]:
    """Mean of each part of the reward, over the answers that could be judged and have it."""
    parts: dict[str, list[float]] = {}
    for answer in answers:
        for name, value in answer.parts.items() if answer.status == OK else ():
            parts.setdefault(name, []).append(value)
    return {f"eval/{name}": fmean(values) for name, values in sorted(parts.items())}


def _sampled_metrics(rows: Sequence[Sequence[GradedAnswer]], ks: Sequence[int] | None) -> dict[str, float]:
    """rows: the sampled answers of each row that has any."""
    if not rows:
        return {}
    counts = [(len(answers), sum(answer.correct for answer in answers)) for answers in rows]
    values = {"eval/sampled_accuracy": [right / count for count, right in counts]}
    for k in powers_of_two(min(count for count, _ in counts)) if ks is None else ks:
        values[f"eval/pass@{k}"] = [pass_at_k(count, right, k) for count, right in counts]
    metrics: dict[str, float] = {}
    for name, of_rows in values.items():
        metrics[name] = fmean(of_rows)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(of_rows)
    return metrics


def _graded(scored: ScoredRollout) -> GradedAnswer:
    rollout = scored.rollout
    return GradedAnswer(
        text=rollout.text,
        reward=scored.reward,
        correct=scored.status == OK and scored.reward >= CORRECT,
        status=scored.status,
        finish_reason=rollout.finish_reason,
        num_tokens=len(rollout.token_ids),
        parts=dict(scored.parts),
        detail=scored.detail,
    )
