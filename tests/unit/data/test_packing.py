from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlinf_vlm.data.packing import check_micro_batch, collate, empty_micro_batch, split_by_count
from rlinf_vlm.types import IGNORE_INDEX, RowError
from tests.packing_by_hand import mixed_rows, pack
from tests.tiny_models import IMAGE
from tests.unit.data.builders import image, sample

PAD = 7


def test_split_by_count():
    assert split_by_count(5, 2) == [[0, 1], [2, 3], [4]]
    assert split_by_count(0, 2) == []


def test_collate_by_hand():
    cat, dog = image("cat", PAD, 2, 1.0), image("dog", PAD, 1, 2.0)
    batch = collate(
        [
            sample([1, PAD, PAD, 5], [3], (cat,)),
            sample([2, PAD, 6], [1, 2][1:], (dog,)),
            sample([3, 4], [1]),
            sample([PAD, PAD, PAD, 9], [3], (cat, dog)),
        ],
        PAD,
    )
    assert batch.input_ids.tolist() == [1, 7, 7, 5, 2, 7, 6, 3, 4, 7, 7, 7, 9]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 9, 13] and batch.cu_seqlens.dtype == torch.int32
    assert batch.labels[batch.labels != IGNORE_INDEX].tolist() == [5, 6, 4, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2, 3]
    # two distinct images: the cat's features are rows 0 and 1, the dog's row 2
    assert batch.num_images == 2
    assert batch.image_positions.tolist() == [1, 2, 5, 9, 10, 11]
    assert batch.image_feature_index.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.image_inputs["pixel_values"][:, 0].tolist() == [1.0] * 8 + [2.0] * 4
    assert batch.image_inputs["image_grid_thw"].tolist() == [[1, 2, 4], [1, 2, 2]]
    assert (batch.lengths, batch.num_supervised) == ((4, 3, 2, 4), 4)


def test_an_image_for_each_use_where_images_are_not_shared():
    cat = image("cat", PAD, 2, 1.0)
    samples = [sample([1, PAD, PAD, 5], [3], (cat,)), sample([PAD, PAD, 6], [2], (cat,))]
    batch = collate(samples, PAD, share_images=False)
    assert (batch.num_images, batch.num_features) == (2, 4)
    assert batch.image_feature_index.tolist() == [0, 1, 2, 3]
    assert batch.image_inputs["pixel_values"].shape == (16, 3) and len(batch.image_grids) == 2
    assert collate(samples, PAD).num_images == 1


def test_pixels_are_rounded_and_nothing_else():
    cat, dog = image("cat", PAD, 2, 1.0 + 2**-12), image("dog", PAD, 1, 1.0 + 2**-7)
    samples = [sample([1, PAD, PAD, 5], [3], (cat,)), sample([PAD, 6], [1], (dog,))]
    exact, rounded = collate(samples, PAD), collate(samples, PAD, pixel_dtype=torch.bfloat16)
    pixels = rounded.image_inputs["pixel_values"]
    assert pixels.dtype == torch.bfloat16
    assert pixels[:, 0].tolist() == [1.0] * 8 + [1.0 + 2**-7] * 4
    assert exact.image_inputs["pixel_values"].dtype == torch.float32 and not torch.equal(
        exact.image_inputs["pixel_values"], pixels.float()
    )
    assert torch.equal(rounded.image_inputs["image_grid_thw"], exact.image_inputs["image_grid_thw"])


def test_image_tokens_have_to_equal_features():
    with pytest.raises(RowError, match="3 image tokens stand for 2 image features"):
        collate([sample([PAD, PAD, PAD, 5], [3], (image("cat", PAD, 2),))], PAD)


def test_tensors_that_do_not_fit_together():
    wide = image("wide", PAD, 1)
    wide = type(wide)(
        key=b"wide", token_ids=(PAD,), num_features=1, tensors={**wide.tensors, "pixel_values": torch.zeros(4, 5)}
    )
    with pytest.raises(RowError, match=r"different shapes \(pixel_values \[\(3,\), \(5,\)\]\)"):
        collate([sample([PAD, 1], [1], (image("cat", PAD, 1),)), sample([PAD, 1], [1], (wide,))], PAD)


def test_the_empty_micro_batch_teaches_nothing():
    batch = empty_micro_batch()
    assert batch.num_supervised == 0 and (batch.labels == IGNORE_INDEX).all() and batch.num_images == 0


def test_micro_batches_that_contradict_themselves_are_refused():
    batch = pack(mixed_rows("qwen2.5_vl"), family="qwen2.5_vl")
    check_micro_batch(batch, IMAGE)
    with pytest.raises(ValueError, match="announces 14 supervised tokens, but has 15"):
        check_micro_batch(replace(batch, num_supervised=14), IMAGE)
    fewer = replace(
        batch, image_positions=batch.image_positions[:-1], image_feature_index=batch.image_feature_index[:-1]
    )
    with pytest.raises(ValueError, match="20 image tokens, but 19 image positions"):
        check_micro_batch(fewer, IMAGE)
    with pytest.raises(ValueError, match="images give 17 features, but image tokens use 16"):
        check_micro_batch(replace(batch, image_feature_index=batch.image_feature_index.clamp(max=15)), IMAGE)
    labels = batch.labels.clone()
    labels[9] = 5
    with pytest.raises(ValueError, match="1 of them at a sample's start"):
        check_micro_batch(replace(batch, labels=labels, num_supervised=16), IMAGE)
    with pytest.raises(ValueError, match="do not fit cu_seqlens"):
        check_micro_batch(replace(batch, lengths=(*batch.lengths[:-1], 1)), IMAGE)
    check_micro_batch(empty_micro_batch(), IMAGE)
