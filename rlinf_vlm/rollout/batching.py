"""From the scored answers of a step to what each actor rank trains on. Plain Python, no torch.

    answers of all engines -> judged -> with_overlong -> informative_groups -> divide -> StepAnswers, a RankShare a rank

Invariants: answers to one prompt, a group, stay together, in one mini-batch and on one rank; the order in which the
engines gave the answers does not matter, since groups are put in the order of the run's stream of prompts and answers
in that of their members. An answer that could not be judged has no reward: it is counted, and is neither trained on nor
compared with.
Not here: advantages, which the actor computes from ``StepAnswers``, and micro-batches.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from rlinf_vlm.config.rl import OverlongConfig
from rlinf_vlm.rewards.protocol import JUDGED, OK
from rlinf_vlm.rollout.records import ENV_ERROR, Outcome, RankShare, Rollout, ScoredRollout, StepAnswers
from rlinf_vlm.types import UserError


def divide(
    scored: Sequence[ScoredRollout], *, world_size: int, n_minibatches: int
) -> tuple[StepAnswers, list[RankShare]]:
    """All answers as plain numbers, and the part of each of ``world_size`` ranks.

    The groups, in stream order, become ``n_minibatches`` mini-batches of equal numbers of groups, give or take one.
    Those of a mini-batch go to the ranks so that their tokens, of prompts and answers, are about equal; a rank may get
    none. Fewer groups than mini-batches give a mini-batch to each group: an update on nothing would still move the
    weights, by momentum and decay. No answers: no mini-batches. Raises ValueError for an answer that was not judged.
    """
    failed = len(scored) - len(judged(scored))
    if failed:
        raise ValueError(f"{failed} of {len(scored)} answers have no judgement and cannot be trained on")
    groups = list(_by_group(scored).values())
    count = min(n_minibatches, len(groups))
    ordered: list[ScoredRollout] = []
    sizes: list[int] = []
    shares: list[list[tuple[ScoredRollout, ...]]] = [[] for _ in range(world_size)]
    places: list[list[int]] = [[] for _ in range(world_size)]
    for number in range(count):
        own = groups[len(groups) * number // count : len(groups) * (number + 1) // count]
        ranks = _ranks([sum(answer.rollout.num_tokens for answer in group) for group in own], world_size)
        first = len(ordered)
        for rank in range(world_size):
            part = tuple(answer for group, owner in zip(own, ranks, strict=True) if owner == rank for answer in group)
            places[rank].append(len(ordered))
            shares[rank].append(part)
            ordered += part
        sizes.append(len(ordered) - first)
    answers = StepAnswers(
        rewards=tuple(answer.reward for answer in ordered),
        groups=tuple(answer.rollout.group for answer in ordered),
        lengths=tuple(len(answer.rollout.token_ids) for answer in ordered),
        minibatches=tuple(sizes),
    )
    return answers, [
        RankShare(
            minibatches=tuple(tuple(answer.rollout for answer in part) for part in share), places=tuple(rank_places)
        )
        for share, rank_places in zip(shares, places, strict=True)
    ]


def _ranks(costs: Sequence[int], world_size: int) -> list[int]:
    """The rank of each group: the costliest first, each to the rank with the least so far, of equal ones the first."""
    loads = [0] * world_size
    ranks = [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        rank = loads.index(min(loads))
        ranks[place] = rank
        loads[rank] += costs[place]
    return ranks


def judged(scored: Sequence[ScoredRollout]) -> list[ScoredRollout]:
    """The answers whose reward says something about them, in their order."""
    return [answer for answer in scored if answer.status in JUDGED]


def informative_groups(scored: Sequence[ScoredRollout]) -> frozenset[int]:
    """Dynamic sampling: the groups whose judged answers have not all exactly one reward.

    The others have advantage 0 everywhere: Yu et al., "DAPO" (arXiv:2503.14476). A group of one is never among them.
    """
    rewards: dict[int, set[float]] = {}
    for answer in judged(scored):
        rewards.setdefault(answer.rollout.group, set()).add(answer.reward)
    return frozenset(group for group, values in rewards.items() if len(values) > 1)


def with_overlong(
    scored: Sequence[ScoredRollout], max_new_tokens: int, overlong: OverlongConfig
) -> list[ScoredRollout]:
    """The same answers, with the soft punishment of long ones (DAPO) added to their rewards.

    0 up to max_new_tokens - buffer tokens, then falling evenly to -factor at max_new_tokens; what was added is the part
    "overlong" of the reward. buffer=0 punishes nothing. Answers that were not judged stay as they are. Raises UserError
    for a buffer above max_new_tokens.
    """
    if overlong.buffer == 0:
        return list(scored)
    if overlong.buffer > max_new_tokens:
        raise UserError(
            f"algorithm.overlong.buffer={overlong.buffer} is more than algorithm.sampling_params.max_new_tokens="
            f"{max_new_tokens}: then no answer is short enough; lower it"
        )
    return [_punished(answer, max_new_tokens, overlong) if answer.status in JUDGED else answer for answer in scored]


def metrics(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """What a step's answers are like, judged or not, under ``rollout/`` and ``reward/``.

    Rewards and their parts are of judged answers (reward_std: population standard deviation; a part: mean over those
    that have it); what ``response_metrics`` tells, of all. ``zero_std_groups``: share of the groups that teach nothing,
    see ``informative_groups``. No answers: counts only.
    """
    failed = Counter(answer.status for answer in scored if answer.status != OK)
    groups = {answer.rollout.group for answer in scored}
    counts: dict[str, float] = {
        "rollout/answers": len(scored),
        "rollout/groups": len(groups),
        "reward/failed": sum(failed.values()),
        **{f"reward/failed_{status}": count for status, count in sorted(failed.items())},
    }
    if not scored:
        return counts
    return {
        **_reward_metrics(judged(scored)),
        **response_metrics([answer.rollout for answer in scored]),
        "rollout/zero_std_groups": 1 - len(informative_groups(scored)) / len(groups),
        **counts,
    }


def _by_group(scored: Sequence[ScoredRollout]) -> dict[int, list[ScoredRollout]]:
    """Group -> its answers, both in order."""
    groups: dict[int, list[ScoredRollout]] = {}
    for answer in sorted(scored, key=lambda answer: (answer.rollout.group, answer.rollout.member)):
        groups.setdefault(answer.rollout.group, []).append(answer)
    return groups


def _punished(answer: ScoredRollout, limit: int, overlong: OverlongConfig) -> ScoredRollout:
    over = len(answer.rollout.token_ids) - (limit - overlong.buffer)
    # The "0 -" keeps a minus sign away from the zero of a short answer.
    penalty = 0 - overlong.factor * min(1.0, max(0.0, over / overlong.buffer))
    return replace(answer, reward=answer.reward + penalty, parts={**answer.parts, "overlong": penalty})


def response_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Lengths, turns and outcomes. No answers: nothing.

    rollout/response_length: mean of the tokens that were generated, in all turns, and _max; rollout/OUTCOME: share of
    all answers (truncated is the clip ratio); turns: mean number; env_close_errors: environments that did not close as
    they should.
    """
    if not rollouts:
        return {}
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    found = Counter(rollout.outcome for rollout in rollouts)
    return {
        "rollout/response_length": statistics.fmean(lengths),
        "rollout/response_length_max": max(lengths),
        **{f"rollout/{outcome}": found[outcome] / len(rollouts) for outcome in get_args(Outcome)},
        "rollout/turns": statistics.fmean(len(rollout.turns) for rollout in rollouts),
        "rollout/env_close_errors": sum(
            rollout.outcome != ENV_ERROR and bool(rollout.outcome_detail) for rollout in rollouts
        ),
    }


def _reward_metrics(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """Of judged answers; empty without any."""
    if not scored:
        return {}
    parts: dict[str, list[float]] = {}
    for answer in scored:
        for name, value in answer.parts.items():
            parts.setdefault(name, []).append(value)
    rewards = [answer.reward for answer in scored]
    return {
        **{f"rollout/{name}": statistics.fmean(values) for name, values in sorted(parts.items())},
        "rollout/reward_mean": statistics.fmean(rewards),
        "rollout/reward_std": statistics.pstdev(rewards),
    }
