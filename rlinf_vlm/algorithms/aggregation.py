"""From losses of tokens to the loss of an optimizer step, however the step is divided. Pure torch.

Every way is: sum over tokens of weight x loss, divided by one number of the whole step. A micro-batch gives its part of
the sum; ``denominator`` of each micro-batch and rank adds up to the number, which is known before the first pass since
it follows from lengths alone. So micro-batch size, packing, accumulation and ranks change nothing but rounding.

token-mean: all tokens of the step count the same (DAPO, Yu et al., arXiv:2503.14476).
seq-mean-token-mean: all answers count the same, each token 1 / length (GRPO, Shao et al., arXiv:2402.03300; GSPO).
seq-mean-token-sum-norm: all tokens count the same, divided by answers x a constant length (Dr.GRPO, Liu et al.,
arXiv:2503.20783): the step's number of tokens has no influence.

An answer without tokens has no part in the sum and is not counted in the denominator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlinf_vlm.algorithms.sequences import check_lengths, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """by_sequence: a token weighs 1 / its answer's length; counts_tokens: divided by tokens, else by answers;
    uses_horizon: divided by a constant length too."""

    by_sequence: bool
    counts_tokens: bool
    uses_horizon: bool


TOKEN_MEAN = Aggregation(by_sequence=False, counts_tokens=True, uses_horizon=False)
SEQ_MEAN_TOKEN_MEAN = Aggregation(by_sequence=True, counts_tokens=False, uses_horizon=False)
SEQ_MEAN_TOKEN_SUM_NORM = Aggregation(by_sequence=False, counts_tokens=False, uses_horizon=True)


def denominator(how: Aggregation, lengths: torch.Tensor, *, horizon: int | None = None) -> float:
    """What these answers (``lengths`` [S], tokens) add to the step's denominator.

    horizon: the constant length in tokens (the most that may be generated). Raises ValueError when it is needed and
    not given, or below 1.
    """
    count = float(lengths.sum()) if how.counts_tokens else float((lengths > 0).sum())
    if not how.uses_horizon:
        return count
    if horizon is None or horizon < 1:
        raise ValueError(f"seq-mean-token-sum-norm divides by a constant length; horizon={horizon}")
    return count * horizon


def aggregate(
    how: Aggregation, token_losses: torch.Tensor, lengths: torch.Tensor, step_denominator: float
) -> torch.Tensor:
    """This micro-batch's part of the step's loss (scalar): the parts of all micro-batches and ranks add up to it.

    token_losses [N], lengths [S]; step_denominator: ``denominator`` summed over the step. Degenerate: a step without
    tokens (denominator 0) gives 0 with a zero gradient.
    """
    check_lengths(token_losses, lengths)
    if how.by_sequence:
        weights = 1.0 / lengths.clamp(min=1).to(token_losses.dtype)
        token_losses = token_losses * spread(weights, lengths, token_losses.shape[0])
    return token_losses.sum() / (step_denominator if step_denominator > 0 else 1.0)
