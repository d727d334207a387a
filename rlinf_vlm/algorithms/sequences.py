"""Sums over the sequences of a packed row of tokens, and back.

Tokens of a micro-batch or of a step stand one after the other without padding: S sequences with ``lengths`` [S], N =
sum of lengths tokens, as ``TokenScores`` has them. A sequence may be empty (a rank without rows, an empty answer).

Invariants: sums are deterministic (no atomic adds), differentiable, and do not depend on what else is packed.
"""

from __future__ import annotations

import torch


def check_lengths(values: torch.Tensor, lengths: torch.Tensor) -> None:
    """ValueError unless ``values`` is one-dimensional. That N is the sum of lengths is left to the sums below, which
    would have to wait for a device to look."""
    if values.dim() != 1 or lengths.dim() != 1:
        raise ValueError(f"packed tokens are [N] with lengths [S], not {list(values.shape)} with {list(lengths.shape)}")


def sequence_sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of each sequence's values: [N], [S] -> [S]; an empty sequence gives 0."""
    check_lengths(values, lengths)
    if values.numel() == 0:
        return values.sum() + values.new_zeros(lengths.shape[0])
    return torch.segment_reduce(values, "sum", lengths=lengths.to(torch.int64), initial=0)


def sequence_means(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean of each sequence's values: [N], [S] -> [S]; an empty sequence gives 0."""
    return sequence_sums(values, lengths) / lengths.clamp(min=1).to(values.dtype)


def spread(values: torch.Tensor, lengths: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Every sequence's value at each of its tokens: [S], [S] -> [N = num_tokens]; no device is waited for."""
    return torch.repeat_interleave(values, lengths.to(torch.int64), output_size=num_tokens)
