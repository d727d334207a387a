"""What training made of a step's tokens, on disk beside its rollouts: advantages, and the trainer's log-probabilities.

    actor ranks -> TrainedAnswer -> <run folder>/rollouts/trained_N.jsonl, one answer a line -> reports

It is for looking at: nothing is trained from it. Numbers have nine digits, as many as tell a float32 from the next.
Answers that were left out of the training are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlinf_vlm.rollout.files import read_lines, rollouts_folder, trained_file, write_lines
from rlinf_vlm.rollout.records import Rollout

DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedTokens:
    """Of an answer's generated tokens [L]: advantages, and logprobs: the trainer's, of the weights that sampled."""

    advantages: tuple[float, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedAnswer:
    """The tokens of one answer, which group and member name."""

    group: int
    member: int
    tokens: TrainedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """What an actor rank says of a step. metrics: the same on every rank; answers: of the rank's share, those that were
    trained on."""

    metrics: dict[str, float]
    answers: tuple[TrainedAnswer, ...]


def write_trained(folder: Path, step: int, answers: Sequence[TrainedAnswer]) -> Path:
    """Writes (or replaces) what ``step`` made of ``answers``; ``folder`` is there."""
    lines = [
        {
            "group": answer.group,
            "member": answer.member,
            "advantages": [_short(value) for value in answer.tokens.advantages],
            "logprobs": [_short(value) for value in answer.tokens.logprobs],
        }
        for answer in answers
    ]
    return write_lines(trained_file(folder, step), lines)


def read_trained(folder: Path, step: int) -> dict[tuple[int, int], TrainedTokens]:
    """(group, member) -> its tokens, of ``step``; nothing where it was not written. ``folder``: that of the rollouts,
    or the run folder around it. Raises UserError with file and line of what is none."""
    file = trained_file(rollouts_folder(folder), step)
    if not file.is_file():
        return {}
    return dict(read_lines(file, _from_json, "line of trained tokens"))


def answers_of(
    rollouts: Sequence[Rollout], advantages: Sequence[float], logprobs: Sequence[float]
) -> list[TrainedAnswer]:
    """advantages, logprobs: of all generated tokens of ``rollouts``, one after the other."""
    found, first = [], 0
    for rollout in rollouts:
        end = first + len(rollout.token_ids)
        tokens = TrainedTokens(advantages=tuple(advantages[first:end]), logprobs=tuple(logprobs[first:end]))
        found.append(TrainedAnswer(group=rollout.group, member=rollout.member, tokens=tokens))
        first = end
    if not first == len(advantages) == len(logprobs):
        raise ValueError(f"{len(advantages)} advantages and {len(logprobs)} log-probabilities for {first} tokens")
    return found


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _from_json(row: dict[str, Any]) -> tuple[tuple[int, int], TrainedTokens]:
    """Raises ValueError with what is wrong."""
    try:
        key = int(row["group"]), int(row["member"])
        lists = [tuple(float(value) for value in row[name]) for name in ("advantages", "logprobs")]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return key, TrainedTokens(advantages=lists[0], logprobs=lists[1])
