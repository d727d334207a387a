"""Policy losses of tokens: what the advantage of a sampled token makes of its log-probability. Pure torch.

Dataflow: log-probabilities of this pass and of the policy that the step began with, advantages, all packed [N] with
lengths [S] -> loss of each token [N] (``aggregation`` makes a number of them) and sums to log.
Invariants: where old and new are equal, all three have the gradient -A x d logprob per token (GSPO: its answer's mean);
no loss looks beyond its sequence; sums are over tokens, so that a step's fraction is sum / tokens however divided.
Not here: the KL penalty, entropy, and the correction between engine and trainer (``rollout_correction``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlinf_vlm.algorithms.sequences import sequence_means, spread

MAX_LOG_RATIO = 20.0
"""Bound of |log ratio|: a token that is this far off gives a finite ratio (4.9e8) and no gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTokens:
    """N tokens of S answers.

    logprobs [N] float32, with gradient; old_logprobs [N] or None: of the policy before the step's first update, None
    says that this is it (strictly on-policy: the ratio is 1, the gradient is there); advantages [N]; lengths [S].
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSettings:
    """The ratio is kept in [1 - low, 1 + high]; dual: the most that a negative advantage is multiplied by (> 1), None
    for no such bound. Which values are usual depends on the loss: 0.2/0.28 for tokens, 3e-4/4e-4 for GSPO."""

    low: float
    high: float
    dual: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for bounds that bound nothing sensible."""
        if self.low < 0 or self.high < 0 or (self.dual is not None and self.dual <= 1):
            raise ValueError(f"clip low={self.low} and high={self.high} are >= 0, dual={self.dual} is null or > 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """token_losses [N] with gradient; sums: scalars without, each a sum over the N tokens: ``ratio``, ``clipped_low``
    and ``clipped_high`` (tokens whose gradient that bound took), ``clipped_dual``, ``kl_old`` (k1, old to new)."""

    token_losses: torch.Tensor
    sums: Mapping[str, torch.Tensor]


def clipped(tokens: PolicyTokens, clip: ClipSettings) -> PolicyLoss:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), r = exp(new - old).

    Schulman et al., "Proximal Policy Optimization" (arXiv:1707.06347); high above low as in DAPO (arXiv:2503.14476);
    dual clip, min(.., -A c) where A < 0: Ye et al. (arXiv:1912.09729).
    """
    log_ratio = _log_ratio(tokens)
    return _clipped(torch.exp(log_ratio), log_ratio, tokens.advantages, clip)


def gspo(tokens: PolicyTokens, clip: ClipSettings) -> PolicyLoss:
    """The clipped loss with one ratio an answer: s = exp(mean over its tokens of new - old).

    Zheng et al., "Group Sequence Policy Optimization" (arXiv:2507.18071), its token form: the value is s for each
    token, the gradient of a token's goes through its own log-probability only, so that advantages may differ by token.
    Meant for seq-mean-token-mean.
    """
    log_ratio = _log_ratio(tokens)
    mean = spread(sequence_means(log_ratio.detach(), tokens.lengths), tokens.lengths, log_ratio.shape[0])
    ratio = torch.exp(mean + tokens.logprobs - tokens.logprobs.detach())
    return _clipped(ratio, log_ratio, tokens.advantages, clip)


def cispo(tokens: PolicyTokens, clip: ClipSettings) -> PolicyLoss:
    """-A x sg(clip(r, 1 - low, 1 + high)) x logprob: the weight is clipped, never the gradient.

    MiniMax, "MiniMax-M1" (arXiv:2506.13585). The paper has no lower bound: low = 1. ``dual`` is not read. The value
    is no objective; only its gradient means something. The ``clipped`` sums count bounded weights.
    """
    log_ratio = _log_ratio(tokens)
    ratio = torch.exp(log_ratio).detach()
    weight = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    sums = _sums(ratio, log_ratio, ratio < 1.0 - clip.low, ratio > 1.0 + clip.high, torch.zeros_like(ratio))
    return PolicyLoss(token_losses=-tokens.advantages * weight * tokens.logprobs, sums=sums)


def _log_ratio(tokens: PolicyTokens) -> torch.Tensor:
    old = tokens.logprobs.detach() if tokens.old_logprobs is None else tokens.old_logprobs
    if not tokens.logprobs.shape == old.shape == tokens.advantages.shape:
        raise ValueError(
            f"logprobs {list(tokens.logprobs.shape)}, old {list(old.shape)} and advantages "
            f"{list(tokens.advantages.shape)} are of different numbers of tokens"
        )
    return (tokens.logprobs - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _clipped(ratio: torch.Tensor, log_ratio: torch.Tensor, advantages: torch.Tensor, clip: ClipSettings) -> PolicyLoss:
    bounded = ratio.clamp(1.0 - clip.low, 1.0 + clip.high)
    losses = torch.maximum(-advantages * ratio, -advantages * bounded)
    low = (ratio < 1.0 - clip.low) & (advantages < 0)
    high = (ratio > 1.0 + clip.high) & (advantages > 0)
    dual = torch.zeros_like(low)
    if clip.dual is not None:
        ceiling = -advantages * clip.dual
        dual = (advantages < 0) & (losses > ceiling)
        losses = torch.where(advantages < 0, torch.minimum(losses, ceiling), losses)
    return PolicyLoss(token_losses=losses, sums=_sums(ratio, log_ratio, low, high, dual))


def _sums(
    ratio: torch.Tensor, log_ratio: torch.Tensor, low: torch.Tensor, high: torch.Tensor, dual: torch.Tensor
) -> dict[str, torch.Tensor]:
    return {
        "ratio": ratio.detach().sum(),
        "clipped_low": low.sum(),
        "clipped_high": high.sum(),
        "clipped_dual": dual.sum(),
        "kl_old": -log_ratio.detach().sum(),
    }
