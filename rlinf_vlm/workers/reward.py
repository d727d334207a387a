"""The reward worker: scores the answers of a step in a pool of processes.

    Rollout -> RewardInput (text, gold answer, finish reason, what is known of row and environment) -> RewardPool
    -> ScoredRollout

Invariants: only what the policy said is graded; a conversation whose environment failed is not judged; one
``ScoredRollout`` for every rollout, in the same order; what is the same to the reward is judged once a call, as answers
that end early or repeat each other are frequent in a group. A plain class without torch: the worker group builds it in
a process and calls its methods.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from threading import Lock

from rlinf_vlm.config.schema import Config
from rlinf_vlm.rewards.pool import RewardPool
from rlinf_vlm.rewards.protocol import RewardInput, Score, failed
from rlinf_vlm.rollout.records import ENV_ERROR, Rollout, ScoredRollout
from rlinf_vlm.types import RankContext


class RewardWorker:
    """One process that scores; ``config.reward`` says with what, and in how many processes of its own."""

    def __init__(self, context: RankContext, config: Config) -> None:
        """Starts the first process. Raises UserError when the reward cannot be made."""
        reward = config.reward
        self.context = context
        self._pool = RewardPool(
            reward.name, reward.options, num_workers=reward.num_workers, time_limit=reward.time_limit
        )
        self._one_call = Lock()

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """The rollouts with their rewards, in order. A second call at the same time waits for the first."""
        asked = {_key(rollout): _input(rollout) for rollout in rollouts if rollout.outcome != ENV_ERROR}
        with self._one_call:
            scores = dict(zip(asked, self._pool.score(list(asked.values())), strict=True))
        return [_scored(rollout, scores.get(_key(rollout)) or _unjudged(rollout)) for rollout in rollouts]

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def _key(rollout: Rollout) -> str:
    """All that the reward is told, and whether it is told anything."""
    item = _input(rollout)
    told = (item.prediction, item.answer, item.finish_reason, dict(item.metadata), rollout.outcome == ENV_ERROR)
    return json.dumps(told, sort_keys=True)


def _input(rollout: Rollout) -> RewardInput:
    return RewardInput(
        prediction=rollout.text,
        answer=rollout.answer,
        finish_reason=rollout.finish_reason,
        metadata={"question": rollout.question, "choices": list(rollout.choices), "env": dict(rollout.env_info)},
    )


def _unjudged(rollout: Rollout) -> Score:
    """Of a conversation that the environment spoilt."""
    return failed(ENV_ERROR, rollout.outcome_detail)


def _scored(rollout: Rollout, score: Score) -> ScoredRollout:
    return ScoredRollout(
        rollout=rollout, reward=score.value, parts=dict(score.parts), status=score.status, detail=score.detail
    )
