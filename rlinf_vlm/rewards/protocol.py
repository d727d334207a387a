"""What a reward is given, what it gives back, and how many are scored without one of them stopping the run.

Dataflow: answer of the policy -> ``RewardInput`` -> reward (sync or async) -> ``Score``.
Invariants: as many scores as inputs, in their order; a reward that raises gives a score with ``status`` "error", so
that a failure is never mistaken for a wrong answer; a score's value is a finite number.
Not here: time limits (``pool``) and which rewards there are (``rewards/__init__``).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OK = "ok"
"""Status of a score that says how good the answer is."""
ERROR = "error"
"""The reward raised."""
TIMEOUT = "timeout"
"""The reward took too long."""
DIED = "died"
"""The process that computed the reward ended."""
REFUSED = "refused"
"""The answer is such that nobody would take it for one: it would take forever to judge (``9^{9^{9^9}}``), or uses
commands that do not exist. It is counted, and its value, the lowest, stands: a policy must not get away with it."""
JUDGED = frozenset({OK, REFUSED})
"""With any other status the value says nothing about the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """One answer to be scored.

    prediction: all that the policy wrote; answer: the gold answer of the row; finish_reason: of the engine ("stop",
    "length"), None when unknown; metadata: what else is known, plain data: a run tells "question" and "choices" of
    the row and, as "env", what the last step of the environment told.
    """

    prediction: str
    answer: str
    finish_reason: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """value: the reward, finite; parts: what it is made of, by name, unweighted; status: ``OK`` or why there is no
    judgement; detail: one line for the per-sample file (what was graded, what went wrong)."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    status: str = OK
    detail: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for NaN and infinities: one would spoil a whole step."""
        if not math.isfinite(self.value):
            raise ValueError(f"a reward of {self.value} is no number to train on")


Reward = Callable[[RewardInput], Score | Awaitable[Score]]
"""A reward: a function, or an object with ``__call__``; sync or async."""


def failed(status: str, detail: str) -> Score:
    """A score without judgement: value 0, and a status that says so."""
    return Score(value=0.0, status=status, detail=detail)


async def score_one(reward: Reward, item: RewardInput) -> Score:
    """One score; what the reward raises is raised."""
    found = reward(item)
    if isinstance(found, Awaitable):
        found = await found
    if not isinstance(found, Score):
        raise TypeError(f"the reward {reward!r} returned a {type(found).__name__}, not a Score")
    return found


async def score_all(reward: Reward, items: Sequence[RewardInput], *, at_once: int = 256) -> list[Score]:
    """A score for every input, in order; at most ``at_once`` are under way. An async reward's waits overlap.

    What a reward raises becomes a score with status "error" and the exception as detail. Cancellation and
    KeyboardInterrupt are passed on.
    """
    places = asyncio.Semaphore(at_once)

    async def one(item: RewardInput) -> Score:
        async with places:
            return await score_one(reward, item)

    found = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    return [_score_of(outcome) for outcome in found]


def _score_of(outcome: Score | BaseException) -> Score:
    if isinstance(outcome, Score):
        return outcome
    if isinstance(outcome, Exception):
        return failed(ERROR, f"{type(outcome).__name__}: {outcome}"[:500])
    raise outcome
