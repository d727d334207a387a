"""The answers of a step: prompts in order, sampled, scored, and asked again where a group teaches nothing.

    cursor -> PromptRef -> rollout workers -> Answers -> reward workers -> ScoredRollout -> Collected

The cursor is the number of prompts that were taken from the stream so far; with dynamic sampling a step takes more than
its share. Every answer and every prompt that is left out is counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from rlinf_vlm.cluster.worker_group import WorkerGroup
from rlinf_vlm.config.rl import DynamicSamplingConfig
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.order import RowStream
from rlinf_vlm.rollout.batching import informative_groups, judged
from rlinf_vlm.rollout.records import (
    ENV_ERROR,
    Answers,
    DroppedPrompt,
    PromptRef,
    Rollout,
    Sampling,
    ScoredRollout,
    Split,
)
from rlinf_vlm.runners.rl_plan import train_sampling
from rlinf_vlm.runners.session import Clock
from rlinf_vlm.types import UserError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """scored: every answer of the step, also those that are not trained on; groups: those that are; cursor: prompts of
    the stream that were taken; dropped: prompts that could not be asked; metrics: counts and seconds."""

    scored: tuple[ScoredRollout, ...]
    groups: frozenset[int]
    cursor: int
    dropped: tuple[DroppedPrompt, ...]
    metrics: dict[str, float]


class PromptStream:
    """The training prompts in the run's order, for ever."""

    def __init__(self, config: Config, rows: int) -> None:
        data = config.data
        self._stream = RowStream(rows=rows, seed=config.actor.seed, shuffle=data.shuffle, block=data.shuffle_block_size)
        self._seed = config.actor.seed
        self._epoch, self._order = 0, self._stream.epoch_order(0)

    def take(self, first: int, count: int) -> list[PromptRef]:
        """Prompts ``first`` .. ``first + count - 1`` of the stream."""
        return [self._prompt(number) for number in range(first, first + count)]

    def _prompt(self, number: int) -> PromptRef:
        epoch, offset = divmod(number, self._stream.rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._stream.epoch_order(epoch)
        return PromptRef(row=int(self._order[offset]), group=number, seed=sampling_seed(self._seed, number))


class Collector:
    """Asks the engines and the graders."""

    def __init__(self, config: Config, rollout: WorkerGroup, reward: WorkerGroup, prompts: PromptStream) -> None:
        self._config = config
        self._rollout = rollout
        self._reward = reward
        self._prompts = prompts

    def collect(self, cursor: int) -> Collected:
        """One step's answers, from prompt ``cursor`` of the stream on.

        Dynamic sampling asks for as many prompts as are still missing, up to max_rounds times, and keeps groups whose
        rewards differ. Raises UserError when no answer is left to train on.
        """
        dynamic, wanted = self._config.algorithm.dynamic_sampling, self._config.data.rollout_batch_size
        scored: list[ScoredRollout] = []
        dropped: list[DroppedPrompt] = []
        kept: set[int] = set()
        seconds = {"time/generate": 0.0, "time/reward": 0.0}
        rounds = 0
        while len(kept) < wanted and rounds < (dynamic.max_rounds if dynamic.enabled else 1):
            prompts = self._prompts.take(cursor, wanted - len(kept))
            cursor, rounds = cursor + len(prompts), rounds + 1
            clock = Clock()
            answers = self.ask(prompts, train_sampling(self._config), split="train")
            seconds["time/generate"] += clock.seconds()
            clock = Clock()
            new = self.score(answers.rollouts)
            seconds["time/reward"] += clock.seconds()
            kept |= usable_groups(new, dynamic)
            scored += new
            dropped += answers.dropped
        asked = {item.rollout.group for item in scored}
        metrics = {
            **seconds,
            "data/dropped_prompts": len(dropped),
            "rollout/rounds": rounds,
            "rollout/dropped_groups": len(asked) - len(kept),
        }
        return Collected(
            scored=tuple(scored), groups=frozenset(kept), cursor=cursor, dropped=tuple(dropped), metrics=metrics
        )

    def ask(self, prompts: Sequence[PromptRef], sampling: Sampling, *, split: Split) -> Answers:
        """Answers to ``prompts`` of the rows of ``split``, from all engines, in the order of prompts."""
        parts = shares(prompts, self._rollout.world_size)
        found: list[Answers] = self._rollout.call_each("generate", [(part, sampling, split) for part in parts])
        return Answers(
            rollouts=tuple(rollout for part in found for rollout in part.rollouts),
            dropped=tuple(prompt for part in found for prompt in part.dropped),
            seconds=max(part.seconds for part in found),
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Rewards, in order. Raises UserError when none of them could be judged."""
        parts = shares(rollouts, self._reward.world_size)
        scored = [item for part in self._reward.call_each("score", [(part,) for part in parts]) for item in part]
        if scored and not judged(scored):
            raise UserError(self._why_none(scored))
        return scored

    def _why_none(self, scored: Sequence[ScoredRollout]) -> str:
        """What to say where no answer could be judged."""
        env, reward = self._config.env, self._config.reward
        why = " ".join(scored[0].detail.split())
        if all(item.status == ENV_ERROR for item in scored):
            return (
                f"env.name={env.name!r} failed in all of {len(scored)} conversations; the first: {why}; mend the "
                f"environment, or raise env.time_limit={env.time_limit:g} or env.max_observation_tokens="
                f"{env.max_observation_tokens}"
            )
        return (
            f"reward.name={reward.name!r} judged none of {len(scored)} answers; the first: {scored[0].status}: {why}; "
            f"mend the reward, or raise reward.time_limit={reward.time_limit:g}"
        )


def usable_groups(scored: Sequence[ScoredRollout], dynamic: DynamicSamplingConfig) -> frozenset[int]:
    """The groups that are trained on: those with a judged answer, with dynamic sampling those that teach something."""
    if dynamic.enabled:
        return informative_groups(scored)
    return frozenset(item.rollout.group for item in judged(scored))


def shares(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Contiguous parts of about equal count."""
    return [items[len(items) * part // parts : len(items) * (part + 1) // parts] for part in range(parts)]


def by_row(scored: Sequence[ScoredRollout]) -> dict[int, list[ScoredRollout]]:
    """Row -> its answers, which follow each other."""
    return {row: list(items) for row, items in groupby(scored, key=lambda item: item.rollout.row)}


def sampling_seed(seed: int, number: int, purpose: str = "train") -> int:
    """A seed for prompt ``number``: the same in each run of the same ``seed``, below 2**31."""
    return zlib.crc32(f"{purpose}:{seed}:{number}".encode()) & 0x7FFFFFFF
