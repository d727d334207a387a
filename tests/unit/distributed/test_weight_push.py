"""Buckets of weights by hand, and the memory that they travel in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rlinf_vlm.distributed.weight_push import SharedMemory, make_buckets
from rlinf_vlm.types import WeightSpec


def spec(name: str, *shape: int, dtype: str = "float32") -> WeightSpec:
    return WeightSpec(name=name, dtype=dtype, shape=shape)


def test_buckets_by_hand():
    units = [
        [spec("a", 10)],  # 40 bytes, taking 256
        [spec("b", 3, 30, dtype="bfloat16"), spec("c", 64)],  # 180 and 256 bytes, taking 512
        [spec("d", 200, dtype="int8")],  # taking 256: beyond 768
        [spec("large", 1000)],  # 4,000 bytes
        [spec("e")],  # one number
    ]
    buckets = make_buckets(units, 768)
    assert [bucket.units for bucket in buckets] == [(0, 1), (2,), (3,), (4,)]
    first = buckets[0].content
    assert [weight.name for weight in first.weights] == ["a", "b", "c"]
    assert first.offsets == (0, 256, 512) and first.nbytes == 768
    assert [bucket.content.nbytes for bucket in buckets[1:]] == [200, 4000, 4]
    assert make_buckets([], 768) == []


def test_a_file_holds_what_was_put_and_goes_with_its_holder():
    (bucket,) = (made.content for made in make_buckets([[spec("a", 2, 3), spec("b", 5, dtype="bfloat16")]], 1 << 20))
    memory = SharedMemory()
    memory.begin(bucket, 4096)
    tensors = [torch.arange(6.0).view(2, 3), torch.arange(5).bfloat16()]
    for place, tensor in enumerate(tensors):
        memory.put(place, tensor.t().contiguous().t())
    content = Path(memory.handle()).read_bytes()
    assert len(content) == 4096
    assert torch.equal(torch.frombuffer(bytearray(content[:24]), dtype=torch.float32).view(2, 3), tensors[0])
    assert torch.equal(torch.frombuffer(bytearray(content[256:266]), dtype=torch.bfloat16), tensors[1])
    path = memory.handle()
    memory.begin(bucket, 4096)
    assert memory.handle() == path, "the next bucket goes to the same memory"
    memory.free()
    assert not os.path.exists(path)
    memory.begin(bucket, 4096)
    memory.put(0, tensors[0])
    memory.free()


def test_another_tensor_than_announced_is_refused():
    (bucket,) = (made.content for made in make_buckets([[spec("a", 2, 3)]], 1 << 20))
    memory = SharedMemory()
    memory.begin(bucket, bucket.nbytes)
    with pytest.raises(ValueError, match="a: torch.float32"):
        memory.put(0, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a: torch.float64"):
        memory.put(0, torch.zeros(2, 3, dtype=torch.float64))
    memory.free()
