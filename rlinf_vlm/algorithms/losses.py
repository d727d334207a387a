"""Losses over token log-probabilities. Pure torch."""

from __future__ import annotations

import torch


def sft_loss(logprobs: torch.Tensor, num_supervised: float) -> torch.Tensor:
    """This micro-batch's part of the mean negative log-likelihood of an optimizer step (scalar, nats per token).

    logprobs [N]: of this micro-batch's supervised tokens; num_supervised: supervised tokens of the whole step, over
    all micro-batches and ranks. The parts add up to the mean over all tokens, so neither the loss nor its gradient
    depends on how the step was divided. Degenerate: no supervised token at all gives 0 (with a zero gradient).
    """
    return -logprobs.sum() / max(1.0, num_supervised)
