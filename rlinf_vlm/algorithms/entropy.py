"""Entropy of the policy's distributions, from logits. Pure torch."""

from __future__ import annotations

import torch


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """H = -sum p log p of each row, in nats: logits [N, V] of any float type -> [N] float32, differentiable.

    The softmax is in float32. A token of logit -inf (banned) has probability 0 and adds 0 to value and gradient.
    Degenerate: N = 0 gives an empty result; a row of -inf only has no distribution and gives NaN.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    finite = torch.where(torch.isneginf(logprobs), torch.zeros_like(logprobs), logprobs)
    return -(logprobs.exp() * finite).sum(dim=-1)
