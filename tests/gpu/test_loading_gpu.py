"""What loading processes send lies in page-locked memory before it is asked for, and is not copied there again."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_arrive_page_locked(processor, num_workers):
    import torch

    from rlinf_vlm.data.loader import Ahead, StepCollator, train_steps
    from rlinf_vlm.data.order import RankSteps, RowStream
    from rlinf_vlm.workers.model import to_device
    from tests.unit.data.test_loader import reader_of, same, tensors

    stream = RowStream(rows=12, seed=0, shuffle=True)
    steps = RankSteps(stream=stream, global_batch=5, total=24, rank=0, world_size=1)
    collator = StepCollator(
        image_token_id=processor.image_token_id, micro_batch_size=None, max_tokens=150, pixel_dtype=torch.bfloat16
    )
    reader = reader_of(processor)
    plain = list(train_steps(reader, steps, collator, Ahead(num_workers=0)))
    locked = list(train_steps(reader, steps, collator, Ahead(num_workers=num_workers, pin_memory=True)))
    assert len(plain) == len(locked) == 5
    for one, two in zip(plain, locked, strict=True):
        for left, right in zip(one.micro_batches, two.micro_batches, strict=True):
            assert same(left, right)
            for name, tensor in tensors(right).items():
                assert tensor.is_pinned() or not tensor.numel(), name
                assert tensor.pin_memory().data_ptr() == tensor.data_ptr(), "it is not copied there a second time"
            moved = tensors(to_device(right, torch.device("cuda")))
            assert all(torch.equal(moved[name].cpu(), tensor) for name, tensor in tensors(left).items())
