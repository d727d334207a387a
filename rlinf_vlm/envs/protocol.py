"""What the policy speaks with: one object a conversation, made for one row, closed whatever happens.

    build_env(sample, args) -> Environment
    reset() -> (observation, info)
    step(response_text) -> (observation, done, info)      once for each whole turn of the policy, the last one included
    format_observation(observation) -> message            of each observation that the policy is to see
    close()

Each of the four methods may be a coroutine function. A process's environments share one event loop for theirs, from
step to step of the run, and one that blocks it costs the others their time; all else runs in threads. A message is a
chat message: ``{"role": "user" or "tool", "content": text}``, or a content that lists ``{"type": "text", "text": ..}``
and ``{"type": "image", "image": ..}``, an image being whatever a row's image may be (a PIL image, bytes, a path, a data
URL).

Invariants: an environment is given what the policy said, without special tokens, and never whole conversations; an
observation that is None or empty is not shown; what a step tells in ``info`` is plain data for the reward
(``RewardInput.metadata["env"]``) and for the record, not for the policy. An environment that raises, or does not answer
within env.time_limit, ends its conversation with the outcome env_error, which is counted and not trained on.
Not here: limits of turns and tokens, and the reward.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
Maybe: TypeAlias = T | Awaitable[T]
"""A value, or an awaitable of one."""
Info: TypeAlias = Mapping[str, Any]
Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSample:
    """What an environment is made for. row: its number; question, answer, choices: of the row; images: its pictures,
    decoded, RGB, in order, and the engine's too: copy one to draw on it; evaluation: whether the answer is for an
    evaluation."""

    row: int
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    images: tuple[Any, ...] = ()
    evaluation: bool = False


class Environment(Protocol):
    """One conversation's other side."""

    def reset(self) -> Maybe[tuple[Any, Info]]:
        """Begins. An observation that is not empty follows the row's prompt."""

    def step(self, response_text: str) -> Maybe[tuple[Any, bool, Info]]:
        """Takes one turn of the policy: (observation, whether the conversation is over, info)."""

    def format_observation(self, observation: Any) -> Maybe[Message]:
        """The message that shows ``observation``."""

    def close(self) -> Maybe[None]:
        """Gives back what it holds. Called once, however the conversation ended."""


class BuildEnv(Protocol):
    """Makes an environment; args: env.options, in evaluation with env.eval_options over them."""

    def __call__(self, *, sample: EnvSample, args: Mapping[str, Any]) -> Environment:
        """Raises UserError for args that it does not take."""


def is_environment(made: object) -> bool:
    """Whether it has the methods of an ``Environment``."""
    return all(callable(getattr(made, name, None)) for name in ("reset", "step", "format_observation", "close"))
