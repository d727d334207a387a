"""What a Qwen vision tower needs to know of the images' grids: positions, window order, segment lengths.

Dataflow: patch grids (host integers) -> tables of one image (kept, as grids repeat) -> ``VisionInputs`` of a
micro-batch on the device, handed to transformers' vision tower as precomputed keyword arguments.
Invariants: the tables are those that transformers computes from ``grid_thw``; nothing is read back from the device.
Not here: pixels and the tower itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import vision_utils

from rlinf_vlm.models.segments import LengthBound, SegmentBook, build_segments
from rlinf_vlm.models.transfer import copy_to

Grid = tuple[int, int, int]

_MAX_KEPT = 4096
FIRST_FRAME_BOUND = 4096
"""Patches of an image that are expected: 1,024 merged tokens."""
FIRST_WINDOW_BOUND = 64
"""Patches of a window of 112 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionGeometry:
    """Constants of a tower. ``window_size`` in pixels, 0 for none; ``grid_side`` of learned positions, 0 for none."""

    spatial_merge_size: int
    patch_size: int
    window_size: int
    grid_side: int
    interpolation: str
    align_corners: bool

    @staticmethod
    def of(visual: Any) -> VisionGeometry:
        """Reads the constants off a vision tower of transformers."""
        config = visual.config
        return VisionGeometry(
            spatial_merge_size=int(config.spatial_merge_size),
            patch_size=int(config.patch_size),
            window_size=int(getattr(visual, "window_size", 0)),
            grid_side=int(getattr(visual, "num_grid_per_side", 0)),
            interpolation=str(getattr(visual, "interpolation_mode", "bilinear")),
            align_corners=bool(getattr(visual, "interpolation_align_corners", True)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTables:
    """Of one image of P patches: position_ids [P, 2]; lengths of its frames; window_index [P / merge^2] and lengths of
    its windows; interp_indices and interp_weights [P, 4] of learned positions. None where the tower has none."""

    position_ids: torch.Tensor
    frame_lengths: tuple[int, ...]
    window_index: torch.Tensor | None
    window_lengths: tuple[int, ...]
    interp_indices: torch.Tensor | None
    interp_weights: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionInputs:
    """Keyword arguments of the tower's forward for one micro-batch, and how many features come out."""

    kwargs: dict[str, Any]
    num_features: int


def tables_of(grid: Grid, geometry: VisionGeometry) -> ImageTables:
    """Tables of one image of ``grid`` (frames, rows, columns in patches), on the CPU."""
    thw = torch.tensor([grid])
    merge = geometry.spatial_merge_size
    window_index, window_lengths, indices, weights = None, (), None, None
    if geometry.window_size:
        window_index, cu_window = vision_utils.get_vision_window_index(
            thw, spatial_merge_size=merge, window_size=geometry.window_size, patch_size=geometry.patch_size
        )
        window_lengths = tuple(cu_window.diff().tolist())
    if geometry.grid_side:
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            thw,
            num_grid_per_side=geometry.grid_side,
            mode=geometry.interpolation,
            align_corners=geometry.align_corners,
            spatial_merge_size=merge,
        )
    return ImageTables(
        position_ids=vision_utils.get_vision_position_ids(thw, merge),
        frame_lengths=(grid[1] * grid[2],) * grid[0],
        window_index=window_index,
        window_lengths=window_lengths,
        interp_indices=indices,
        interp_weights=weights,
    )


class VisionPlanner:
    """Makes ``VisionInputs``; keeps the tables of grids that it has seen."""

    def __init__(self, geometry: VisionGeometry, *, grouped: bool) -> None:
        self.geometry = geometry
        self.grouped = grouped
        self._kept: dict[Grid, ImageTables] = {}
        self._longest_frame = LengthBound(FIRST_FRAME_BOUND)
        self._longest_window = LengthBound(FIRST_WINDOW_BOUND)

    def plan(self, grids: Sequence[Grid], device: torch.device) -> VisionInputs:
        """The tower's inputs for images of these grids, in this order; at least one."""
        tables = [self._tables(grid) for grid in grids]
        merge_unit = self.geometry.spatial_merge_size**2
        frames = build_segments(
            [length for table in tables for length in table.frame_lengths],
            device=device,
            causal=False,
            grouped=self.grouped,
            bound=self._longest_frame,
        )
        entries = [frames]
        kwargs: dict[str, Any] = {
            "position_ids": _join([table.position_ids for table in tables], device),
            "cu_seqlens": frames.cu_seqlens,
            "max_seqlen": frames.kernel_max_length,
        }
        if self.geometry.window_size:
            windows = build_segments(
                [length for table in tables for length in table.window_lengths],
                device=device,
                causal=False,
                grouped=self.grouped,
                bound=self._longest_window,
            )
            entries.append(windows)
            kwargs["window_index"] = _join(_shifted([table.window_index for table in tables]), device)
            kwargs["cu_window_seqlens"] = windows.cu_seqlens
            kwargs["max_window_seqlen"] = windows.kernel_max_length
        if self.geometry.grid_side:
            kwargs["interp_indices"] = _join([table.interp_indices for table in tables], device)
            kwargs["interp_weights"] = _join([table.interp_weights for table in tables], device)
        if self.grouped:
            kwargs["segments"] = SegmentBook(entries=tuple(entries))
        return VisionInputs(kwargs=kwargs, num_features=sum(t * h * w for t, h, w in grids) // merge_unit)

    def _tables(self, grid: Grid) -> ImageTables:
        if grid not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[grid] = tables_of(grid, self.geometry)
        return self._kept[grid]


def _shifted(indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Indices into each image's merged patches -> indices into those of all images one after the other."""
    shifted: list[torch.Tensor | None] = []
    offset = 0
    for index in indices:
        assert index is not None, "a tower with windows has a window index for every image"
        shifted.append(index + offset)
        offset += int(index.shape[0])
    return shifted


def _join(parts: list[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    present = [part for part in parts if part is not None]
    assert len(present) == len(parts), "every image has the same kinds of tables"
    return copy_to(torch.cat(present), device)
