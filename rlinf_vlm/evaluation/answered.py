"""Answers that the policy generated to evaluation or test rows, graded by the reward: one record a row, and metrics.

    ScoredRollouts of the greedy pass, and of the sampled ones --records_of--> AnsweredRecord --summarise--> metrics

An answer is correct when its reward is 1 (``CORRECT``), whatever the reward is made of. Invariants: an answer that the
reward could not judge is not correct, and is counted under ``eval/failed``; a row that could not be asked is in no
share, and is counted under ``eval/dropped_rows``. Metrics follow from what a record's line of JSON says, and from
nothing else. Plain Python.
Not here: lines read back (``lines``), closed answers judged by one forward pass (``answers``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rlinf_vlm.evaluation.behaviour import behaviour
from rlinf_vlm.evaluation.intervals import bootstrap_interval, wilson_interval
from rlinf_vlm.evaluation.pass_at_k import pass_at_k, powers_of_two
from rlinf_vlm.rewards.protocol import JUDGED, OK
from rlinf_vlm.rollout.records import DroppedPrompt, FinishReason, Outcome, Rollout, ScoredRollout

CORRECT = 1.0 - 1e-9
"""The least reward of a correct answer: 1, less what a weighted sum is rounded by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAnswer:
    """One answer. text: all that the model said, without special tokens; num_tokens: that were generated; reward,
    parts, status, detail: as in ``ScoredRollout``; outcome: of its conversation; turns: of a conversation with an
    environment, the observation before each turn and what the model then said, else empty."""

    text: str
    reward: float
    correct: bool
    status: str
    finish_reason: FinishReason
    num_tokens: int
    parts: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    outcome: Outcome = "completed"
    turns: tuple[Mapping[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Without parts, detail and turns where there are none."""
        return {name: value for name, value in asdict(self).items() if value not in ({}, "", ()) or name == "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRecord:
    """One row of the evaluation set: one line of ``eval/step_N.jsonl``.

    question, answer: of the row; greedy: the likeliest answer, token by token; sampled: others, in the order of
    members; settings: name of one of algorithm.eval_settings -> the answers by it, likewise; error: why the row could
    not be asked (then nothing else is known of it, and greedy is None).
    """

    row: int
    question: str = ""
    answer: str = ""
    greedy: GradedAnswer | None = None
    sampled: tuple[GradedAnswer, ...] = ()
    settings: Mapping[str, tuple[GradedAnswer, ...]] = field(default_factory=dict)
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
        if self.settings:
            named = self.settings.items()
            line["settings"] = {name: [answer.as_json() for answer in answers] for name, answers in named}
        return line


def is_correct(scored: ScoredRollout) -> bool:
    """Whether an answer was judged, and is right."""
    return scored.status == OK and scored.reward >= CORRECT


def records_of(
    greedy: Sequence[ScoredRollout],
    sampled: Sequence[ScoredRollout] = (),
    dropped: Sequence[DroppedPrompt] = (),
    settings: Mapping[str, Sequence[ScoredRollout]] | None = None,
) -> list[AnsweredRecord]:
    """A record for each row that has a greedy answer, or was dropped; by row.

    Each in any order; sampled: any number of answers to a row; settings: name -> answers, likewise. Raises ValueError
    for two greedy answers to one row, and for a row with sampled answers and no greedy one, or one that is dropped as
    well.
    """
    others = _by_row(sampled)
    named = {name: _by_row(answers) for name, answers in (settings or {}).items()}
    records = [
        AnsweredRecord(
            row=answer.rollout.row,
            question=answer.rollout.question,
            answer=answer.rollout.answer,
            greedy=_graded(answer),
            sampled=others.pop(answer.rollout.row, ()),
            settings={name: answers.pop(answer.rollout.row, ()) for name, answers in named.items()},
        )
        for answer in greedy
    ]
    records += [AnsweredRecord(row=prompt.row, error=prompt.reason) for prompt in dropped]
    twice = sorted(row for row, count in Counter(record.row for record in records).items() if count > 1)
    if twice:
        raise ValueError(f"rows {twice[:5]} have more than one greedy answer, or are dropped as well")
    left = sorted({row for answers in (others, *named.values()) for row in answers})
    if left:
        raise ValueError(f"rows {left[:5]} have sampled answers and no greedy one")
    return sorted(records, key=lambda record: record.row)


def summarise(
    records: Sequence[AnsweredRecord],
    ks: Sequence[int] | None = None,
    *,
    split: str = "eval",
    words: Sequence[str] = (),
    setting_ks: Mapping[str, int | None] | None = None,
) -> dict[str, float]:
    """Metrics of one evaluation, under ``split``/ (here: eval/). No usable row: counts only.

    Of the greedy answers: accuracy (with _low and _high, the 95 % Wilson interval), reward_mean (of those that could be
    judged), each part of the reward by its name (mean over those that have it), response_length (mean, in tokens),
    truncated (share that came to the limit of tokens), max_turns and env_error (shares, where there are any), and those
    of ``behaviour`` for ``words``. Of the sampled ones, where there are any: sampled_accuracy, the mean over rows of
    the share that is correct, and pass@k for each of ``ks`` (null: 1, 2, 4, .. up to the answers of a row), each with
    _low and _high, the 95 % bootstrap interval over rows. Of each setting of the records, under eval/NAME/: accuracy
    and pass@k in the same way (setting_ks: name -> its only k, None or missing: 1, 2, 4, ..), response_length,
    truncated and those of ``behaviour``. failed: answers that could not be judged, of all passes. Raises ValueError
    for a k above the answers of the row that has fewest.
    """
    used = [record for record in records if record.greedy is not None]
    greedy = [record.greedy for record in records if record.greedy is not None]
    drawn = [answer for record in used for row in (record.sampled, *record.settings.values()) for answer in row]
    metrics: dict[str, float] = {
        "samples": len(used),
        "dropped_rows": len(records) - len(used),
        "failed": sum(answer.status != OK for answer in (*greedy, *drawn)),
    }
    if used:
        metrics |= _greedy_metrics(greedy, words)
        metrics |= _sampled_metrics([record.sampled for record in used if record.sampled], ks, "sampled_accuracy")
    for name in dict.fromkeys(name for record in used for name in record.settings):
        rows = [record.settings[name] for record in used if record.settings.get(name)]
        k = (setting_ks or {}).get(name)
        own = _sampled_metrics(rows, None if k is None else [k], "accuracy")
        own |= _plain_metrics([answer for row in rows for answer in row], words)
        metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
    return {f"{split}/{name}": value for name, value in metrics.items()}


def _greedy_metrics(greedy: Sequence[GradedAnswer], words: Sequence[str]) -> dict[str, float]:
    metrics = _part_means(greedy)  # first: a part that is called as one of those below does not hide it
    right = sum(answer.correct for answer in greedy)
    metrics["accuracy"] = right / len(greedy)
    metrics["accuracy_low"], metrics["accuracy_high"] = wilson_interval(right, len(greedy))
    rewards = [answer.reward for answer in greedy if answer.status in JUDGED]
    if rewards:
        metrics["reward_mean"] = fmean(rewards)
    return metrics | _plain_metrics(greedy, words)


def _part_means(answers: Sequence[GradedAnswer]) -> dict[str, float]:
    """Mean of each part of the reward, over the answers that could be judged and have it."""
    parts: dict[str, list[float]] = {}
    for answer in answers:
        for name, value in answer.parts.items() if answer.status == OK else ():
            parts.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in sorted(parts.items())}


def _plain_metrics(answers: Sequence[GradedAnswer], words: Sequence[str]) -> dict[str, float]:
    """What holds for answers of any kind. No answers: nothing."""
    if not answers:
        return {}
    found, _ = behaviour([(answer.text, answer.correct) for answer in answers], words)
    outcomes = Counter(answer.outcome for answer in answers)
    return {
        "response_length": fmean(answer.num_tokens for answer in answers),
        "truncated": fmean(answer.finish_reason == "length" for answer in answers),
        **{name: outcomes[name] / len(answers) for name in ("max_turns", "env_error") if name in outcomes},
        **found,
    }


def _sampled_metrics(
    rows: Sequence[Sequence[GradedAnswer]], ks: Sequence[int] | None, accuracy: str
) -> dict[str, float]:
    """rows: the sampled answers of each row that has any; accuracy: what the share of correct ones is called."""
    if not rows:
        return {}
    counts = [(len(answers), sum(answer.correct for answer in answers)) for answers in rows]
    values = {accuracy: [right / count for count, right in counts]}
    for k in powers_of_two(min(count for count, _ in counts)) if ks is None else ks:
        values[f"pass@{k}"] = [pass_at_k(count, right, k) for count, right in counts]
    metrics: dict[str, float] = {}
    for name, of_rows in values.items():
        metrics[name] = fmean(of_rows)
        metrics[f"{name}_low"], metrics[f"{name}_high"] = bootstrap_interval(of_rows)
    return metrics


def _by_row(scored: Sequence[ScoredRollout]) -> dict[int, tuple[GradedAnswer, ...]]:
    """Row -> its answers, in the order of members."""
    rows: dict[int, tuple[GradedAnswer, ...]] = {}
    for answer in sorted(scored, key=lambda answer: answer.rollout.member):
        rows[answer.rollout.row] = (*rows.get(answer.rollout.row, ()), _graded(answer))
    return rows


def _graded(scored: ScoredRollout) -> GradedAnswer:
    rollout = scored.rollout
    return GradedAnswer(
        text=rollout.text,
        reward=scored.reward,
        correct=is_correct(scored),
        status=scored.status,
        finish_reason=rollout.finish_reason,
        num_tokens=len(rollout.token_ids),
        parts=dict(scored.parts),
        detail=scored.detail,
        outcome=rollout.outcome,
        turns=_turns(rollout),
    )


def _turns(rollout: Rollout) -> tuple[Mapping[str, str], ...]:
    """Empty where the first turn is the whole conversation."""
    if len(rollout.turns) < 2 and not any(turn.observation for turn in rollout.turns):
        return ()
    return tuple({"observation": turn.observation, "text": turn.text} for turn in rollout.turns)
