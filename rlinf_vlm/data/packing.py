"""Samples become micro-batches: chosen by count or by tokens, concatenated without padding, each image once.

Pure functions. Whatever the grouping, the loss is the same: it is normalised by the supervised tokens of the whole
optimizer step, and attention never crosses from one sample to the next (``cu_seqlens``). Which samples share a
micro-batch when tokens are counted: ``balance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from rlinf_vlm.data.sharing import empty_tensor
from rlinf_vlm.types import IGNORE_INDEX, MicroBatch, ProcessedImage, RowError, Sample


def split_by_count(num_samples: int, size: int) -> list[list[int]]:
    """Indices 0..num_samples-1 in runs of ``size``; the last may be shorter."""
    return [list(range(start, min(start + size, num_samples))) for start in range(0, num_samples, size)]


def collate(
    samples: Sequence[Sample],
    image_token_id: int,
    *,
    share_images: bool = True,
    pixel_dtype: torch.dtype | None = None,
) -> MicroBatch:
    """One micro-batch of ``samples``, in order. Raises RowError when an image's tokens and features disagree, and
    SharedMemoryError where a loading process gets no shared memory for it.

    share_images: an image that is used several times is there once; else once for each use. pixel_dtype: what the
    images' floating-point tensors are rounded to; None leaves them.
    """
    assert samples, "a micro-batch has at least one sample"
    input_ids = torch.cat([sample.input_ids for sample in samples])
    labels = torch.cat([sample.labels for sample in samples])
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    cu_seqlens = torch.zeros(len(samples) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    uses = [image for sample in samples for image in sample.images]
    images = list({image.key: image for image in uses}.values()) if share_images else uses
    image_positions = (input_ids == image_token_id).nonzero().flatten()
    feature_index = _feature_index(uses, images) if share_images else torch.arange(_num_features(images))
    if len(feature_index) != len(image_positions):
        raise RowError(f"{len(image_positions)} image tokens stand for {len(feature_index)} image features")
    image_inputs = _concatenate(images, pixel_dtype)
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
        num_images=len(images),
        num_features=_num_features(images),
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


def _num_features(images: Sequence[ProcessedImage]) -> int:
    return sum(image.num_features for image in images)


def _concatenate(images: Sequence[ProcessedImage], pixel_dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
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
    return {name: _joined([image.tensors[name] for image in images], pixel_dtype) for name in images[0].tensors}


def _joined(pieces: Sequence[torch.Tensor], pixel_dtype: torch.dtype | None) -> torch.Tensor:
    """``torch.cat``, rounded to ``pixel_dtype``, written once: in a loading process, to where it is sent from."""
    floating = pixel_dtype is not None and pieces[0].is_floating_point()
    dtype = pixel_dtype if floating and pixel_dtype is not None else pieces[0].dtype
    joined = empty_tensor((sum(len(piece) for piece in pieces), *pieces[0].shape[1:]), dtype)
    start = 0
    for piece in pieces:
        joined[start : start + len(piece)] = piece
        start += len(piece)
    return joined
