"""Where the samples of a packed row begin and end, and how attention over them is cut into dense batches.

Dataflow: segment lengths (host integers) -> ``Segments`` (cu_seqlens on the device, and a grouping) -> attention.py.
Invariants: a grouping holds every token exactly once; tokens of two segments are never in one row of a dense batch;
nothing here reads a tensor back from the device.
Not here: the attention itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlinf_vlm.models.transfer import copy_to

LENGTH_STEP = 16
"""Causal segments whose lengths round up to the same multiple share one dense batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """Dense batches for attention, one after the other in a padded layout of P >= T rows.

    batches: (segments, rows a segment) of each dense batch; gather [P]: which token stands in a row of the layout (a
    pad repeats its own segment's last token); scatter [T]: in which row a token stands. Both None when the packed row
    already has that layout.
    """

    batches: tuple[tuple[int, int], ...]
    gather: torch.Tensor | None
    scatter: torch.Tensor | None
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """Segments of one packed row. ``cu_seqlens`` [S + 1] int32; ``kernel_max_length``: an upper bound of the longest
    segment."""

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor
    kernel_max_length: int
    grouping: Grouping | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentBook:
    """The segmentations of one forward pass; an attention call finds its own by the cu_seqlens tensor it was given."""

    entries: tuple[Segments, ...]

    def find(self, cu_seqlens: torch.Tensor) -> Segments:
        for entry in self.entries:
            if entry.cu_seqlens is cu_seqlens:
                return entry
        raise AssertionError("attention got a cu_seqlens tensor that this forward pass did not make")


class LengthBound:
    """An upper bound of segment lengths that only grows, by powers of two.

    Kernels are told the longest segment as a plain number, which compiled code takes for a constant: a number that
    followed each micro-batch would mean another graph each time. A bound that is too high costs them next to nothing.
    """

    def __init__(self, first: int) -> None:
        self._bound = first

    def cover(self, length: int) -> int:
        """The bound, raised to at least ``length``."""
        if length > self._bound:
            self._bound = 1 << (length - 1).bit_length()
        return self._bound


def group_by_length(lengths: Sequence[int], *, step: int = 1) -> list[tuple[int, list[int]]]:
    """Segments that share a dense batch: (rows a segment, segment numbers), by rising length.

    Lengths that round up to the same multiple of ``step`` share one, padded to the longest of them; ``step=1`` groups
    equal lengths only, without padding. Segments of length 0 are in none.

    Example: ``group_by_length([5, 3, 5]) == [(3, [1]), (5, [0, 2])]``
    """
    groups: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        if length > 0:
            groups.setdefault(-(-length // step), []).append(number)
    return [(max(lengths[number] for number in members), members) for _, members in sorted(groups.items())]


def plan_grouping(lengths: Sequence[int], *, step: int, device: torch.device) -> Grouping:
    """The grouping of segments of these lengths; index tensors are built on the host and sent without waiting."""
    groups = group_by_length(lengths, step=step)
    sizes = torch.tensor(lengths, dtype=torch.int64)
    starts = torch.cumsum(sizes, 0) - sizes
    total = int(sizes.sum())
    gather_parts, real_parts = [], []
    for rows, members in groups:
        chosen = torch.tensor(members, dtype=torch.int64)
        offsets = torch.arange(rows)
        inside = torch.minimum(offsets[None, :], sizes[chosen][:, None] - 1)
        gather_parts.append((starts[chosen][:, None] + inside).flatten())
        real_parts.append((offsets[None, :] < sizes[chosen][:, None]).flatten())
    gather = torch.cat(gather_parts) if gather_parts else torch.empty(0, dtype=torch.int64)
    batches = tuple((len(members), rows) for rows, members in groups)
    if gather.shape[0] == total and torch.equal(gather, torch.arange(total)):
        return Grouping(batches=batches, gather=None, scatter=None, num_rows=total)
    real = torch.nonzero(torch.cat(real_parts)).flatten()
    scatter = torch.empty(total, dtype=torch.int64)
    scatter[gather[real]] = real
    return Grouping(
        batches=batches,
        gather=copy_to(gather, device),
        scatter=copy_to(scatter, device),
        num_rows=int(gather.shape[0]),
    )


def build_segments(
    lengths: Sequence[int],
    *,
    device: torch.device,
    causal: bool,
    grouped: bool,
    bound: LengthBound,
    cu_seqlens: torch.Tensor | None = None,
) -> Segments:
    """``Segments`` of these lengths; ``grouped`` adds the dense batches that the sdpa attention works on.

    Padding inside a batch is for causal attention only: there, no token looks at what comes after it.
    """
    if cu_seqlens is None:
        ends = torch.cumsum(torch.tensor([0, *lengths], dtype=torch.int64), 0)
        cu_seqlens = copy_to(ends.to(torch.int32), device)
    return Segments(
        lengths=tuple(lengths),
        cu_seqlens=cu_seqlens,
        kernel_max_length=bound.cover(max(lengths, default=1)),
        grouping=plan_grouping(lengths, step=LENGTH_STEP if causal else 1, device=device) if grouped else None,
    )
