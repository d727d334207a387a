"""Micro-batches made by hand from ids, labels and random images, and what transformers says of each sample alone.

``Row`` is one sample; ``pack`` concatenates rows, each distinct image once (images are equal when they are the same
object); ``alone`` scores one row by transformers' own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rlinf_vlm.models.mrope import mrope_positions
from rlinf_vlm.types import IGNORE_INDEX, MicroBatch
from tests.tiny_models import GENERIC, IMAGE, MERGE, PATCH, VISION_END, VISION_START


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """pixels: the vision tower's input; grid: (frames, rows, columns) in patches, None for the generic family."""

    pixels: torch.Tensor
    grid: tuple[int, int, int] | None
    num_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample; labels as in ``Sample``."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    images: tuple[Image, ...] = field(default=())


def random_image(family: str, grid: tuple[int, int, int], generator: torch.Generator) -> Image:
    """An image of noise; the generic family has one size only and ignores ``grid``."""
    if family == GENERIC:
        return Image(pixels=torch.randn(1, 3, 8, 8, generator=generator), grid=None, num_features=4)
    patches = grid[0] * grid[1] * grid[2]
    pixels = torch.randn(patches, 3 * 2 * PATCH * PATCH, generator=generator)
    return Image(pixels=pixels, grid=grid, num_features=patches // MERGE**2)


def make_row(parts: Sequence[int | Image], supervised: int, generator: torch.Generator) -> Row:
    """A sample: an int is so many random text tokens, an image its tokens; the last ``supervised`` have labels."""
    ids: list[int] = []
    images: list[Image] = []
    for part in parts:
        if isinstance(part, Image):
            ids += [VISION_START] + [IMAGE] * part.num_features + [VISION_END]
            images.append(part)
        else:
            ids += torch.randint(3, 100, (part,), generator=generator).tolist()
    input_ids = torch.tensor(ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    if supervised:
        labels[-supervised:] = input_ids[-supervised:]
    return Row(input_ids=input_ids, labels=labels, images=tuple(images))


def mixed_rows(family: str, seed: int = 0) -> list[Row]:
    """Text only, one image, two images of other shapes, an image first, text only; of mixed lengths."""
    generator = torch.Generator().manual_seed(seed)
    square = random_image(family, (1, 4, 4), generator)
    wide = random_image(family, (1, 4, 10), generator)
    tall = random_image(family, (1, 6, 2), generator)
    return [
        make_row([9], 4, generator),
        make_row([3, square, 6], 3, generator),
        make_row([2, wide, 3, tall, 5], 5, generator),
        make_row([tall, 7], 1, generator),
        make_row([9], 2, generator),
    ]


def pack(rows: Sequence[Row], *, family: str, share: bool = True, one_dimensional: bool = False) -> MicroBatch:
    """The micro-batch of ``rows``. share=False computes an image again for each use; one_dimensional gives every token
    the position that it has without images."""
    distinct: list[Image] = []
    first_feature: list[int] = []
    num_features = 0
    positions, features, places, offset = [], [], [], 0
    for row in rows:
        used: list[int] = []
        for image in row.images:
            known = next((i for i, other in enumerate(distinct) if share and other is image), None)
            if known is None:
                known = len(distinct)
                distinct.append(image)
                first_feature.append(num_features)
                num_features += image.num_features
            used += range(first_feature[known], first_feature[known] + image.num_features)
        features += used
        places.append(torch.nonzero(row.input_ids == IMAGE).flatten() + offset)
        offset += len(row.input_ids)
        if one_dimensional or family == GENERIC:
            positions.append(torch.arange(len(row.input_ids)).expand(3, -1))
        else:
            grids = [image.grid for image in row.images if image.grid is not None]
            positions.append(mrope_positions(row.input_ids, IMAGE, grids, MERGE))
    labels = torch.cat([row.labels for row in rows])
    lengths = [len(row.input_ids) for row in rows]
    return MicroBatch(
        input_ids=torch.cat([row.input_ids for row in rows]),
        labels=labels,
        position_ids=torch.cat(positions, dim=1),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        image_positions=torch.cat(places),
        image_feature_index=torch.tensor(features, dtype=torch.int64),
        image_inputs=image_inputs(distinct),
        lengths=tuple(lengths),
        num_supervised=int((labels != IGNORE_INDEX).sum()),
        num_images=len(distinct),
        num_features=num_features,
        image_grids=tuple(image.grid for image in distinct if image.grid is not None),
    )


def image_inputs(images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """The vision tower's inputs for ``images``."""
    if not images:
        return {}
    inputs = {"pixel_values": torch.cat([image.pixels for image in images])}
    if images[0].grid is not None:
        inputs["image_grid_thw"] = torch.tensor([image.grid for image in images])
    return inputs


def alone(hf: Any, row: Row, *, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs [N] with gradients, argmax [N]) of a row's labels by the transformers model's own forward."""
    inputs: dict[str, Any] = image_inputs(row.images)
    if family != GENERIC:
        inputs["mm_token_type_ids"] = (row.input_ids == IMAGE).int()[None]
    logits = hf(input_ids=row.input_ids[None], attention_mask=torch.ones(1, len(row.input_ids)).long(), **inputs).logits
    places = torch.nonzero(row.labels != IGNORE_INDEX).flatten()
    logprobs = logits[0, places - 1].float().log_softmax(-1)
    return logprobs.gather(1, row.labels[places][:, None])[:, 0], logprobs.argmax(-1)
