"""From rows to steps: what is grouped with what, and that it arrives as it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch

from rlinf_vlm.data.loader import Ahead, EvalBatch, EvalCollator, RankStep, StepCollator, eval_batches, train_steps
from rlinf_vlm.data.order import RankSteps, RowStream
from rlinf_vlm.data.packing import empty_micro_batch
from rlinf_vlm.data.reading import BadRow, BatchReader, ReadRows, RowReader
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.types import Conversation, MicroBatch, ProcessedImage, RowError, Sample
from tests.unit.data.builders import image, png, sample, talk

PAD = 7


def use(picture: ProcessedImage, length: int, row: int) -> Sample:
    """A sample of ``length`` tokens that begins with the picture and ends with a label."""
    ids = [*picture.token_ids, *([1] * (length - len(picture.token_ids)))]
    return sample(ids, [length - 1], (picture,), row)


def step_of(samples: Sequence[Sample], **settings: Any) -> RankStep:
    collator = StepCollator(**{"image_token_id": PAD, "micro_batch_size": None, "max_tokens": 64, **settings})
    return collator(ReadRows(items=tuple([one] for one in samples)))


def lengths(step: RankStep) -> list[tuple[int, ...]]:
    return [batch.lengths for batch in step.micro_batches]


def test_rows_of_one_image_end_in_one_micro_batch():
    """Eight answers to each of three questions about pictures, as reinforcement learning has them, of uneven lengths:
    24 samples of 8 to 15 tokens in bins of 128, the pictures once each."""
    pictures = [image(name, PAD, 4) for name in ("cat", "dog", "cup")]
    samples = [use(pictures[index // 8], 8 + index % 8, index) for index in range(24)]
    step = step_of(samples, max_tokens=128)
    assert sorted(lengths(step)) == [tuple(range(8, 16))] * 3
    assert [batch.num_images for batch in step.micro_batches] == [1, 1, 1]
    # Where a group does not fit, its picture is there in each part of it, and nowhere else.
    smaller = step_of(samples, max_tokens=64)
    assert sum(batch.num_images for batch in smaller.micro_batches) == 6
    # Together in a bin or not: without sharing, each use counts, and nothing holds groups together.
    assert sum(batch.num_images for batch in step_of(samples, max_tokens=128, share_images=False).micro_batches) == 24


def test_a_step_by_hand():
    cat = image("cat", PAD, 4)
    bad = BadRow(row=9, reason="f row 9: no")
    collator = StepCollator(image_token_id=PAD, micro_batch_size=None, max_tokens=16)
    rows = ReadRows(items=([use(cat, 10, 0)], bad, [use(cat, 6, 1)], [sample([1] * 12, [3])]), division=77)
    step = collator(rows)
    assert lengths(step) == [(10, 6), (12,)]
    assert (step.num_samples, step.bad_rows, step.division) == (3, (bad,), 77)
    counted = StepCollator(image_token_id=PAD, micro_batch_size=2, max_tokens=None)(rows)
    assert lengths(counted) == [(10, 6), (12,)]
    assert StepCollator(image_token_id=PAD, micro_batch_size=None, max_tokens=16)(ReadRows(items=())).num_samples == 0


class Talks:
    """Rows that are conversations; every third shows its own picture, the others one picture between them."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        picture = png((index * 20, 0, 0), (40 + index, 64)) if index % 3 == 0 else png()
        return talk(("user", "What? " * (index + 1)), ("assistant", "this"), images=(picture,))

    def locate(self, index: int) -> tuple[str, int]:
        return "talks", index

    def folder_of(self, index: int) -> None:
        return None


class AsTheyAre:
    """Rows are conversations already; number 7 is refused."""

    def convert(self, row: Any) -> Conversation:
        if row.question == "What? " * 8:
            raise RowError("seven")
        return row


def positions(input_ids: torch.Tensor, images: Any) -> torch.Tensor:
    return torch.arange(len(input_ids)).expand(3, -1)


def reader_of(processor: Any) -> BatchReader:
    return BatchReader(
        reader=RowReader(rows=Talks(), kind=AsTheyAre(), renderer=Renderer(processor, positions, RenderOptions()))
    )


def tensors(batch: MicroBatch) -> dict[str, torch.Tensor]:
    named = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {**{name: value for name, value in named.items() if isinstance(value, torch.Tensor)}, **batch.image_inputs}


def same(left: MicroBatch, right: MicroBatch) -> bool:
    ours, theirs = tensors(left), tensors(right)
    plain = all(
        getattr(left, name) == getattr(right, name) for name in ("lengths", "num_images", "num_features", "image_grids")
    )
    alike = (ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)
    return plain and ours.keys() == theirs.keys() and all(alike)


@pytest.mark.parametrize("pixel_dtype", [None, torch.bfloat16])
def test_steps_arrive_as_they_were_sent(processor, pixel_dtype):
    """Loading processes write images to shared memory at once; here, or there, the steps are the same."""
    reader = reader_of(processor)
    steps = RankSteps(stream=RowStream(rows=12, seed=0, shuffle=True), global_batch=5, total=24, rank=0, world_size=1)
    collator = StepCollator(
        image_token_id=processor.image_token_id, micro_batch_size=None, max_tokens=150, pixel_dtype=pixel_dtype
    )
    here, there = (list(train_steps(reader, steps, collator, Ahead(num_workers=count))) for count in (0, 2))
    assert len(here) == len(there) == 5
    assert sum(step.num_samples for step in there) == 22 and sum(len(step.bad_rows) for step in there) == 2
    for left, right in zip(here, there, strict=True):
        assert left.bad_rows == right.bad_rows
        for one, two in zip(left.micro_batches, right.micro_batches, strict=True):
            assert same(one, two)
            assert two.image_inputs["pixel_values"].dtype == (pixel_dtype or torch.float32)
            assert two.image_inputs["pixel_values"].is_shared() and not one.image_inputs["pixel_values"].is_shared()


def test_evaluation_batches_arrive_as_they_were_sent(processor):
    collator = EvalCollator(image_token_id=processor.image_token_id)
    here, there = (
        list(eval_batches(reader_of(processor), range(4, 12), 3, 4, collator, Ahead(num_workers=count)))
        for count in (0, 1)
    )
    assert [[one.row for one in batch.samples] for batch in there] == [[4, 5, 6], [8, 9], [10, 11], []]
    assert [len(batch.bad_rows) for batch in there] == [0, 1, 0, 0]
    assert all(same(left.micro_batch, right.micro_batch) for left, right in zip(here, there, strict=True))


class Page:
    """In place of a tensor: knows whether it is in page-locked memory."""

    def __init__(self, locked: bool = False) -> None:
        self.locked = locked

    def pin_memory(self) -> Page:
        return Page(locked=True)


def test_every_tensor_of_a_batch_is_moved_to_page_locked_memory():
    names = [field.name for field in fields(MicroBatch)]
    real = empty_micro_batch()
    own = {name: getattr(real, name) for name in names}
    pages = {name: Page() for name, value in own.items() if isinstance(value, torch.Tensor)}
    batch = MicroBatch(**{**own, **pages, "image_inputs": {"pixel_values": Page(), "image_grid_thw": Page()}})
    step = RankStep(micro_batches=(batch, batch), num_samples=3, division=5).pin_memory()
    whole = EvalBatch(micro_batch=batch, samples=()).pin_memory()
    assert (step.num_samples, step.division, len(step.micro_batches)) == (3, 5, 2)
    for moved in (*step.micro_batches, whole.micro_batch):
        found = [getattr(moved, name) for name in pages] + list(moved.image_inputs.values())
        assert len(found) == 8 and all(page.locked for page in found)
