"""Estimates of KL(policy || reference) from the log-probabilities of sampled tokens. Pure torch.

Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html). [N] float32, per token, nats.
With d = log p_policy - log p_reference of a token that the policy sampled: k1 and k3 have the divergence as mean, k3
with less spread and never below 0; k2 is biased, but little where the two are close.

In the loss what counts is the gradient, not the value: the mean gradient of k1 is 0 (it restrains nothing; use it in
the reward), that of k2 is the divergence's own, that of k3 is the one of KL(reference || policy), the other way round
(Tang and Munos, "On a few pitfalls in KL divergence gradient estimation for RL", arXiv:2506.09477). GRPO as published
has k3 in the loss (arXiv:2402.03300).
Not here: whether a reference is needed at all (a coefficient of 0 needs none).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

MAX_LOG_RATIO = 20.0
"""Bound of |d| inside k3's exponential: beyond it the value stays finite (4.9e8) and the gradient is 0."""


def k1(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """d: unbiased, of either sign."""
    return logprobs - reference_logprobs


def k2(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """d^2 / 2."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(-d) - 1 + d: unbiased and never negative."""
    ratio = (reference_logprobs - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(ratio) - ratio


def kl_rewards(
    estimator: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    *,
    coefficient: float,
) -> torch.Tensor:
    """The penalty as rewards of tokens [N], without gradient: -coefficient x estimate (Ziegler et al.,
    arXiv:1909.08593). Goes into ``AdvantageInput.token_rewards``."""
    return -coefficient * estimator(logprobs.detach(), reference_logprobs.detach())
