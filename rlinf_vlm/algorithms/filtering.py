"""Which answers are trained on, and what length does to a reward. Pure torch.

Both from Yu et al., "DAPO" (arXiv:2503.14476).
"""

from __future__ import annotations

import torch


def informative(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Dynamic sampling: which answers belong to a group whose rewards differ [S] bool.

    rewards [S], groups [S] int64 (any numbers, in any order). A group of equal rewards has advantage 0 everywhere:
    it is dropped and another prompt sampled. A group of one is never informative.
    """
    if rewards.shape != groups.shape:
        raise ValueError(f"rewards {list(rewards.shape)} and groups {list(groups.shape)} are not of the same answers")
    numbers = torch.unique(groups, return_inverse=True)[1]
    empty = torch.zeros(int(numbers.max()) + 1 if numbers.numel() else 0, dtype=rewards.dtype, device=rewards.device)
    low = empty.scatter_reduce(0, numbers, rewards, "amin", include_self=False)
    high = empty.scatter_reduce(0, numbers, rewards, "amax", include_self=False)
    return (low != high)[numbers]


def overlong_penalty(lengths: torch.Tensor, *, max_length: int, buffer: int) -> torch.Tensor:
    """Soft overlong punishment, to be added to the rewards: [S] int64 tokens -> [S] float64 in [-1, 0].

    0 up to max_length - buffer tokens, then falling evenly to -1 at max_length, -1 beyond. Raises ValueError unless
    0 <= buffer <= max_length. Degenerate: buffer 0 is a step: 0 up to max_length, -1 beyond.
    """
    if not 0 <= buffer <= max_length:
        raise ValueError(f"overlong buffer={buffer} is not between 0 and max_length={max_length}")
    if buffer == 0:
        return -(lengths > max_length).to(torch.float64)
    over = (lengths - (max_length - buffer)).to(torch.float64)
    return -(over / buffer).clamp(0.0, 1.0)


def untruncated(truncated: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Overlong filtering: lengths [S] with 0 for answers that were cut off (``truncated`` [S] bool): they then have no
    part in a loss's denominator. Their tokens are to be left out of the packed row too."""
    return torch.where(truncated, torch.zeros_like(lengths), lengths)
