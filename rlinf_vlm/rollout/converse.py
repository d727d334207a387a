"""The loop of one conversation: the policy speaks, its environment answers, until one of them is done.

    environment.reset -> [ policy's turn -> environment.step -> observation ] .. -> close

Single-turn reinforcement learning is this loop with an environment that is done after one step. The budget counts what
the policy generates, not what it is told. A turn that was cut is no turn to an environment: the conversation ends
there. Many of these coroutines run at once, each awaiting the engine or its environment.
Not here: engines, ids, scores.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rlinf_vlm.envs.protocol import BuildEnv, EnvSample
from rlinf_vlm.rollout.coroutines import Coroutines
from rlinf_vlm.rollout.dialogue import Dialogue, Said
from rlinf_vlm.rollout.environments import EnvironmentFailed, TimedEnvironment
from rlinf_vlm.rollout.observations import ShownMessage
from rlinf_vlm.rollout.prompts import Prompt
from rlinf_vlm.rollout.records import COMPLETED, ENV_ERROR, MAX_TURNS, TRUNCATED, Outcome
from rlinf_vlm.types import RowError

Speak = Callable[[Prompt, int, int], Awaitable[Said]]
"""(what is to be continued, which turn from 0, most tokens) -> what the policy said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """max_turns: of the policy; turn_tokens, conversation_tokens: most that it may generate in one turn and in all;
    seconds: of a call of the environment."""

    max_turns: int
    turn_tokens: int
    conversation_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """outcome: see ``records.Outcome``; detail: what went wrong, or ""; info: of the environment's last step."""

    outcome: Outcome
    detail: str = ""
    info: dict[str, Any] = field(default_factory=dict)


async def converse(
    dialogue: Dialogue,
    build: BuildEnv,
    sample: EnvSample,
    args: dict[str, Any],
    speak: Speak,
    limits: TurnLimits,
    coroutines: Coroutines,
) -> Ended:
    """Holds one conversation; ``dialogue`` has its turns afterwards. coroutines: where those of environments run.

    What the environment does wrong ends it with the outcome env_error; what the engine does wrong is raised. The
    environment is closed in every case.
    """
    try:
        environment = await TimedEnvironment.open(build, sample, args, limits.seconds, coroutines)
    except EnvironmentFailed as error:
        return Ended(outcome=ENV_ERROR, detail=str(error))
    closing = ""
    try:
        ended = await _hold(dialogue, environment, speak, limits)
    except EnvironmentFailed as error:
        ended = Ended(outcome=ENV_ERROR, detail=str(error))
    finally:
        closing = await environment.close()
    return ended if ended.detail or not closing else Ended(outcome=ended.outcome, detail=closing, info=ended.info)


async def _hold(dialogue: Dialogue, environment: TimedEnvironment, speak: Speak, limits: TurnLimits) -> Ended:
    opening = await environment.reset()
    if opening is not None:
        _told(dialogue.open, opening)
    info: dict[str, Any] = {}
    for turn in range(limits.max_turns):
        budget = limits.conversation_tokens - dialogue.num_generated
        if budget <= 0:
            return Ended(outcome=TRUNCATED, info=info)
        said = await speak(dialogue.prompt, turn, min(budget, limits.turn_tokens))
        dialogue.say(said)
        if said.finish_reason == "length":
            return Ended(outcome=TRUNCATED, info=info)
        observation, done, info = await environment.step(said.text)
        if done:
            return Ended(outcome=COMPLETED, info=info)
        if turn + 1 < limits.max_turns:
            _told(dialogue.tell, await environment.show(observation))
    return Ended(outcome=MAX_TURNS, info=info)


def _told(tell: Callable[[ShownMessage], None], shown: ShownMessage) -> None:
    """Shows an observation; one that cannot be shown is the environment's fault."""
    try:
        tell(shown)
    except RowError as error:
        raise EnvironmentFailed(str(error)) from error
