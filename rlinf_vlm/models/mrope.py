"""Positions of one sample's tokens: 3-D (M-RoPE) around images, 1-D elsewhere.

Dataflow: input ids and the patch grids of the sample's images -> LongTensor [3, L] (time, height, width).
Invariants: text advances all three rows by one; an image's tokens get (frame, row, column) counted from the position
that follows the text before it, and the text after it goes on at that position plus the larger side of the merged grid.
The builders are picklable plain data, for use in data workers.
Not here: videos, and the packing of samples (each sample starts at 0 again).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Grid = tuple[int, int, int]


def mrope_positions(
    input_ids: torch.Tensor, image_token_id: int, image_grids: Sequence[Grid], spatial_merge_size: int
) -> torch.Tensor:
    """Positions [3, L] int64 of ``input_ids`` [L].

    image_grids: (frames, rows, columns) of each image in patches, in reading order; an image of grid (t, h, w) has
    t * (h // merge) * (w // merge) image tokens, side by side. ValueError when tokens and grids do not fit together.
    """
    length = int(input_ids.shape[0])
    places = torch.nonzero(input_ids == image_token_id).flatten().tolist()
    out = torch.empty(3, length, dtype=torch.int64)
    used = cursor = position = 0
    for frames, rows, columns in image_grids:
        rows, columns = rows // spatial_merge_size, columns // spatial_merge_size
        count = frames * rows * columns
        if used + count > len(places):
            break
        start, end = places[used], places[used] + count
        if places[used + count - 1] != end - 1:
            raise ValueError(
                f"image tokens of grid {(frames, rows, columns)} from position {start} on are not contiguous"
            )
        out[:, cursor:start] = torch.arange(position, position + start - cursor)
        position += start - cursor
        block = out[:, start:end].view(3, frames, rows, columns)
        block[0] = (torch.arange(frames) + position)[:, None, None]
        block[1] = (torch.arange(rows) + position)[None, :, None]
        block[2] = (torch.arange(columns) + position)[None, None, :]
        position += max(rows, columns)
        used, cursor = used + count, end
    expected = sum(t * (h // spatial_merge_size) * (w // spatial_merge_size) for t, h, w in image_grids)
    if expected != len(places):
        raise ValueError(f"{len(places)} image tokens, but {len(image_grids)} image grids stand for {expected}")
    out[:, cursor:] = torch.arange(position, position + length - cursor)
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class MropePositions:
    """``positions(input_ids, image_grids) -> [3, L]`` for families with M-RoPE."""

    image_token_id: int
    spatial_merge_size: int

    def __call__(self, input_ids: torch.Tensor, image_grids: Sequence[Grid]) -> torch.Tensor:
        return mrope_positions(input_ids, self.image_token_id, image_grids, self.spatial_merge_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialPositions:
    """``positions(input_ids, image_grids) -> [3, L]``: 0, 1, 2, ... in all three rows, whatever the images."""

    def __call__(self, input_ids: torch.Tensor, image_grids: Sequence[Grid] = ()) -> torch.Tensor:
        return torch.arange(int(input_ids.shape[0]), dtype=torch.int64).expand(3, -1)


def positions_for(*, mrope: bool, hf_config: Any) -> MropePositions | SequentialPositions:
    """The position builder of a family; ``hf_config`` is the checkpoint's config object."""
    if not mrope:
        return SequentialPositions()
    return MropePositions(
        image_token_id=int(hf_config.image_token_id), spatial_merge_size=int(hf_config.vision_config.spatial_merge_size)
    )
