"""Samples become micro-batches: chosen by count or by tokens, concatenated without padding, each image once.

Pure functions. Whatever the grouping, the loss is the same: it is normalised by the supervised tokens of the whole
optimizer step, and attention never crosses from one sample to the next (``cu_seqlens``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from rlinf_vlm.types import IGNORE_INDEX, MicroBatch, ProcessedImage, RowError, Sample


def split_by_count(num_samples: int, size: int) -> list[list[int]]:
    """Indices 0..num_samples-1 in runs of ``size``; the last may be shorter."""
    return [list(range(start, min(start + size, num_samples))) for start in range(0, num_samples, size)]


def pack_first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in bins of at most ``budget`` tokens, each into the first bin that has room (order kept in a bin).

    Neighbours stay together where they can, so that rows with a common image share a bin.
    Example: lengths 5, 4, 3, 2 with budget 8 give [[0, 2], [1, 3]]. A length above the budget is a ValueError.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        if length > budget:
            raise ValueError(f"a sample of {length} tokens does not fit in a budget of {budget} tokens")
        place = next((number for number, free in enumerate(room) if free >= length), None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= length
    return bins


def collate(samples: Sequence[Sample], image_token_id: int) -> MicroBatch:
    """One micro-batch of ``samples``, in order. Raises RowError when an image's tokens and features disagree."""
    assert samples, "a micro-batch has at least one sample"
    input_ids = torch.cat([sample.input_ids for sample in samples])
    labels = torch.cat([sample.labels for sample in samples])
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    cu_seqlens = torch.zeros(len(samples) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    uses = [image for sample in samples for image in sample.images]
    unique = list({image.key: image for image in uses}.values())
    image_positions = (input_ids == image_token_id).nonzero().flatten()
    feature_index = _feature_index(uses, unique)
    if len(feature_index) != len(image_positions):
        raise RowError(f"{len(image_positions)} image tokens stand for {len(feature_index)} image features")
    image_inputs = _concatenate(unique)
    grids = image_inputs.get("image_grid_thw")
    batch = MicroBatch(
        input_ids=input_ids,
        labels=labels,
        position_ids=torch.cat([sample.position_ids for sample in samples], dim=1),
        cu_seqlens=cu_seqlens,
        image_positions=image_positions,
        image_feature_index=feature_index,
        image_inputs=image_inputs,
        lengths=tuple(lengths.tolist()),
        num_supervised=int((labels != IGNORE_INDEX).sum()),
        num_images=len(unique),
        num_features=sum(image.num_features for image in unique),
        image_grids=() if grids is None else tuple((t, h, w) for t, h, w in grids.tolist()),
    )
    check_micro_batch(batch, image_token_id)
    return batch


def check_micro_batch(batch: MicroBatch, image_token_id: int) -> None:
    """ValueError unless the plain numbers of ``batch``, whose tensors are on the host, say what its tensors hold.

    Once here, in the loading process: the model would have to wait for the device to look.
    """
    labels = int((batch.labels != IGNORE_INDEX).sum())
    at_start = int((batch.labels[batch.cu_seqlens[:-1].long()] != IGNORE_INDEX).sum())
    if labels != batch.num_supervised or at_start:
        raise ValueError(
            f"micro-batch announces {batch.num_supervised} supervised tokens, but has {labels}, {at_start} of them "
            "at a sample's start"
        )
    if batch.cu_seqlens.tolist() != [0, *accumulate(batch.lengths)] or sum(batch.lengths) != len(batch.input_ids):
        raise ValueError(
            f"lengths {batch.lengths} do not fit cu_seqlens {batch.cu_seqlens.tolist()} "
            f"and {len(batch.input_ids)} tokens"
        )
    image_tokens = int((batch.input_ids == image_token_id).sum())
    if image_tokens != batch.image_positions.numel() or image_tokens != batch.image_feature_index.numel():
        raise ValueError(
            f"{image_tokens} image tokens, but {batch.image_positions.numel()} image positions and "
            f"{batch.image_feature_index.numel()} image features"
        )
    used = int(batch.image_feature_index.max()) + 1 if image_tokens else 0
    if used != batch.num_features:
        raise ValueError(f"images give {batch.num_features} features, but image tokens use {used}")


def empty_micro_batch() -> MicroBatch:
    """A micro-batch that teaches nothing: two tokens, no label. A rank runs it while others still have work."""
    return MicroBatch(
        input_ids=torch.zeros(2, dtype=torch.int64),
        labels=torch.full((2,), IGNORE_INDEX, dtype=torch.int64),
        position_ids=torch.arange(2).expand(3, 2).contiguous(),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        image_positions=torch.zeros(0, dtype=torch.int64),
        image_feature_index=torch.zeros(0, dtype=torch.int64),
        image_inputs={},
        lengths=(2,),
        num_supervised=0,
        num_images=0,
        num_features=0,
    )


def _feature_index(uses: Sequence[ProcessedImage], unique: Sequence[ProcessedImage]) -> torch.Tensor:
    """For each image token of the batch, its row in the concatenated features of the unique images."""
    start: dict[bytes, int] = {}
    offset = 0
    for image in unique:
        start[image.key] = offset
        offset += image.num_features
    pieces = [torch.arange(start[image.key], start[image.key] + image.num_features) for image in uses]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)


def _concatenate(images: Sequence[ProcessedImage]) -> dict[str, torch.Tensor]:
    """The images' tensors, each name concatenated along its first dimension."""
    if not images:
        return {}
    shapes = {name: {tuple(image.tensors[name].shape[1:]) for image in images} for name in images[0].tensors}
    uneven = [f"{name} {sorted(kinds)}" for name, kinds in shapes.items() if len(kinds) > 1]
    if uneven:
        raise RowError(
            f"images of one micro-batch have tensors of different shapes ({'; '.join(uneven)}); "
            "give the images one size, or take one sample a pass (actor.micro_batch_size=1, actor.eval_batch_size=1)"
        )
    return {name: torch.cat([image.tensors[name] for image in images]) for name in images[0].tensors}
