"""Correction for the difference between the engine that sampled and the trainer that learns. Pure torch.

The engine's numbers are not the trainer's (other kernels, another precision), so what is called on-policy is off-policy
by exp(trainer - engine) of each token. The loss of a token is multiplied by that ratio, cut off above: truncated
importance sampling, Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025,
https://fengyao.notion.site/off-policy-rl); cut by setting it to 0 ("mask"): Liu et al., "When Speed Kills Stability"
(2025). Weights are data, not part of the gradient.

Levels, with d_t = trainer - engine: token, exp(d_t); sequence, exp(sum of d over the answer), the unbiased one, which
spreads with the length; geometric, exp(mean of d over the answer).
The trainer's log-probabilities are those of the policy before the step's first update: the engine's weights.
Not here: ``rollout.max_logprob_gap``, which stops a run; ``Correction.gap_max`` is what it looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from rlinf_vlm.algorithms.sequences import sequence_means, sequence_sums, spread

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio| before the exponential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionSettings:
    """level: what has one ratio; mode: ``truncate`` keeps a ratio above ``upper`` at it, ``mask`` sets ratios above
    ``upper`` or below ``lower`` to 0; upper > 0: usual is 2; lower: read by ``mask`` only."""

    level: Literal["token", "sequence", "geometric"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    upper: float = 2.0
    lower: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for bounds in the wrong order."""
        if not 0 <= self.lower < self.upper:
            raise ValueError(f"rollout correction: 0 <= lower={self.lower} < upper={self.upper} does not hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """weights [N] float32, without gradient; sums: over tokens, to be added over micro-batches and ranks and divided
    by tokens: ``gap`` (|trainer - engine|), ``k1`` and ``k3`` (KL(engine || trainer), the tokens are the engine's),
    ``weight``, ``weight_squared``, ``cut`` (tokens whose ratio was cut); gap_max: the largest |trainer - engine|."""

    weights: torch.Tensor
    sums: Mapping[str, torch.Tensor]
    gap_max: torch.Tensor


def correct(
    trainer_logprobs: torch.Tensor, engine_logprobs: torch.Tensor, lengths: torch.Tensor, settings: CorrectionSettings
) -> Correction:
    """Weights of tokens: both [N], lengths [S] of whole answers. Degenerate: no token gives empty weights and 0."""
    gap = (trainer_logprobs - engine_logprobs).detach().float()
    if settings.level == "token":
        log_ratio = gap
    else:
        reduce = sequence_sums if settings.level == "sequence" else sequence_means
        log_ratio = spread(reduce(gap, lengths), lengths, gap.shape[0])
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    cut = ratio > settings.upper
    if settings.mode == "mask":
        cut = cut | (ratio < settings.lower)
        weights = torch.where(cut, torch.zeros_like(ratio), ratio)
    else:
        weights = ratio.clamp(max=settings.upper)
    bounded = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    sums = {
        "gap": gap.abs().sum(),
        "k1": -gap.sum(),
        "k3": (torch.expm1(bounded) - bounded).sum(),
        "weight": weights.sum(),
        "weight_squared": weights.square().sum(),
        "cut": cut.sum(),
    }
    largest = gap.abs().max() if gap.numel() else gap.new_zeros(())
    return Correction(weights=weights, sums=sums, gap_max=largest)


def effective_fraction(weight_sum: float, weight_squared_sum: float, num_tokens: int) -> float:
    """Effective sample size over the number of tokens, (sum w)^2 / (N sum w^2): 1 where all weights are equal.

    Kong (1992). The sums are those of ``Correction`` over the step. Degenerate: no token, or weights all 0, gives 0.
    """
    return weight_sum**2 / (num_tokens * weight_squared_sum) if num_tokens and weight_squared_sum > 0 else 0.0
