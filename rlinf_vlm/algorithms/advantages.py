"""Advantages of sampled answers, from their rewards. Pure torch, statistics in float64.

Dataflow: the rewards of all answers of an optimizer step, with the group (prompt) of each -> one advantage a token [N].
Invariants: a function is called once for all answers of the step, of all ranks, so that no statistic depends on how the
step is divided; the order of the answers does not matter, and a group's answers need not stand together, since groups
have numbers and are not told by position. Where all rewards that are compared are equal, the advantage is exactly 0,
whatever their value: eight times 0.9 has no float mean of exactly 0.9, and dividing that remainder by a standard
deviation of 0 would make a gradient of nothing.
Not here: which groups are worth training on (``filtering``), and the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlinf_vlm.algorithms.sequences import sequence_sums, spread

EPSILON = 1e-6
"""Added to a standard deviation that is divided by, as in verl and slime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageInput:
    """S answers of a step with N tokens in all.

    rewards [S]: of whole answers, any float or integer type; groups [S] int64: which prompt each answers, any numbers;
    lengths [S] int64: its tokens; token_rewards [N] or None: what is added at each token (``kl.kl_rewards``).
    """

    rewards: torch.Tensor
    groups: torch.Tensor
    lengths: torch.Tensor
    token_rewards: torch.Tensor | None = None


def grpo(answers: AdvantageInput) -> torch.Tensor:
    """(r - mean of the group) / (standard deviation of the group + 1e-6), the same at each token of an answer.

    Shao et al., "DeepSeekMath" (arXiv:2402.03300), outcome supervision. The standard deviation is the unbiased one
    (n - 1), as in verl and slime. Rewards of tokens count as part of the answer's reward. Degenerate: a group of equal
    rewards and a group of one have advantage 0.
    """
    scores, groups = _scores(answers)
    centered, counts = _centered(scores, groups)
    squares = _group_sums(centered.square(), groups)
    deviation = (squares / (counts - 1).clamp(min=1)).sqrt()
    return _to_tokens(centered / (deviation[groups] + EPSILON), answers)


def grpo_no_std(answers: AdvantageInput) -> torch.Tensor:
    """r - mean of the group: Dr.GRPO, Liu et al., "Understanding R1-Zero-Like Training" (arXiv:2503.20783).

    Without the division, questions that are nearly always or nearly never answered do not weigh more. Degenerate: as
    ``grpo``.
    """
    scores, groups = _scores(answers)
    return _to_tokens(_centered(scores, groups)[0], answers)


def rloo(answers: AdvantageInput) -> torch.Tensor:
    """r - mean of the other answers of the group: Ahmadian et al., "Back to Basics" (arXiv:2402.14740).

    Equal to n / (n - 1) times (r - mean of the group). Degenerate: a group of one has no others and advantage 0.
    """
    scores, groups = _scores(answers)
    centered, counts = _centered(scores, groups)
    factor = counts / (counts - 1).clamp(min=1)
    return _to_tokens(centered * factor[groups], answers)


def reinpp(answers: AdvantageInput) -> torch.Tensor:
    """Return to go of each token, whitened over all tokens of the step: Hu et al., "REINFORCE++" (arXiv:2501.03262).

    The return of token t is the answer's reward plus the rewards of tokens t, t + 1, .. (no discount), so with a KL
    penalty in the rewards tokens of one answer differ. Whitened: minus the mean, over the unbiased standard deviation
    + 1e-6. Groups are not used. Degenerate: all returns equal, or one token, gives 0.
    """
    _scores(answers)  # for its checks
    returns = _spread(answers.rewards.to(torch.float64), answers)
    if answers.token_rewards is not None:
        returns = returns + _to_go(answers.token_rewards.to(torch.float64), answers.lengths)
    return _whiten(returns).to(torch.float32)


def reinpp_baseline(answers: AdvantageInput) -> torch.Tensor:
    """r - mean of the group, then whitened over all tokens of the step: REINFORCE++-baseline (arXiv:2501.03262).

    Longer answers weigh more in mean and deviation, since both are over tokens. Degenerate: groups of equal rewards
    and groups of one are baselined to 0, but the mean over tokens is subtracted after; when all groups are so,
    everything is 0. Such a group's advantage is set to exactly 0.
    """
    scores, groups = _scores(answers)
    centered, _ = _centered(scores, groups)
    equal = _is_equal(scores, groups)[groups]
    whitened = _whiten(_spread(centered, answers))
    silent = _spread(equal, answers)
    return torch.where(silent, torch.zeros_like(whitened), whitened).to(torch.float32)


def _scores(answers: AdvantageInput) -> tuple[torch.Tensor, torch.Tensor]:
    """(reward of each answer with its tokens' rewards [S] float64, groups numbered from 0 [S])."""
    if answers.rewards.shape != answers.groups.shape or answers.rewards.shape != answers.lengths.shape:
        raise ValueError(
            f"rewards {list(answers.rewards.shape)}, groups {list(answers.groups.shape)} and lengths "
            f"{list(answers.lengths.shape)} are of different numbers of answers"
        )
    scores = answers.rewards.to(torch.float64)
    if not bool(scores.isfinite().all()):
        raise ValueError("a reward is NaN or infinite: it would make every advantage of the step NaN")
    if answers.token_rewards is not None:
        scores = scores + sequence_sums(answers.token_rewards.to(torch.float64), answers.lengths)
    return scores, torch.unique(answers.groups, return_inverse=True)[1]


def _group_sums(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """[S], groups 0 .. G-1 [S] -> [G] float64."""
    return torch.zeros(_count(groups), dtype=torch.float64, device=values.device).index_add(0, groups, values)


def _count(groups: torch.Tensor) -> int:
    return int(groups.max()) + 1 if groups.numel() else 0


def _is_equal(scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Which groups have but one value [G]."""
    empty = torch.zeros(_count(groups), dtype=scores.dtype, device=scores.device)
    low = empty.scatter_reduce(0, groups, scores, "amin", include_self=False)
    high = empty.scatter_reduce(0, groups, scores, "amax", include_self=False)
    return low == high


def _centered(scores: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(score minus its group's mean [S], exactly 0 in groups of equal scores; answers of each group [G])."""
    counts = _group_sums(torch.ones_like(scores), groups)
    means = _group_sums(scores, groups) / counts
    centered = scores - means[groups]
    return torch.where(_is_equal(scores, groups)[groups], torch.zeros_like(centered), centered), counts


def _whiten(values: torch.Tensor) -> torch.Tensor:
    """(values - mean) / (unbiased standard deviation + 1e-6) [N]; zeros where all values are equal."""
    if values.numel() < 2 or bool((values == values[0]).all()):
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std(unbiased=True) + EPSILON)


def _to_go(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of a token's value and of those after it in its sequence [N]."""
    parts = values.split(lengths.tolist())
    return torch.cat([part.flip(0).cumsum(0).flip(0) for part in parts]) if parts else values


def _spread(values: torch.Tensor, answers: AdvantageInput) -> torch.Tensor:
    return spread(values, answers.lengths, int(answers.lengths.sum()))


def _to_tokens(advantages: torch.Tensor, answers: AdvantageInput) -> torch.Tensor:
    return _spread(advantages, answers).to(torch.float32)
