"""Weights on their way to engines: whole tensors of shards, in buckets, in memory that engines can read.

    tensors' names, types and shapes -> ``make_buckets`` -> for each bucket: ``whole`` tensor by tensor -> a ``Staging``

Invariants: the tensors of a bucket stand one after the other at multiples of 256 bytes, so that an engine sees them in
place; a rank holds one whole tensor and one bucket at a time. Shared memory is a file without a name (memfd), which the
system takes back with the last process that has it open, however that ends; no mount bounds its size.
Not here: which tensors those are and what they are called (models), and the engine's side.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from rlinf_vlm.types import WeightBucket, WeightSpec

ALIGNMENT = 256
"""Bytes; what CUDA aligns its own memory to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket, and which units' tensors it holds, in this order."""

    content: WeightBucket
    units: tuple[int, ...]


def num_bytes(spec: WeightSpec) -> int:
    """Bytes of a tensor's elements."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return math.prod(spec.shape) * dtype.itemsize


def make_buckets(units: Sequence[Sequence[WeightSpec]], limit: int) -> list[Bucket]:
    """The units (tensors that are made together) in buckets of at most ``limit`` bytes, in their order.

    A unit that is larger gets a bucket of its own.
    """
    found: list[Bucket] = []
    chosen: list[int] = []
    held = 0

    def close() -> None:
        if chosen:
            content = _bucket([spec for unit in chosen for spec in units[unit]])
            found.append(Bucket(content=content, units=tuple(chosen)))
            chosen.clear()

    for number, specs in enumerate(units):
        size = sum(_aligned(num_bytes(spec)) for spec in specs)
        if held + size > limit:
            close()
            held = 0
        chosen.append(number)
        held += size
    close()
    return found


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bucket(weights: Sequence[WeightSpec]) -> WeightBucket:
    offsets: list[int] = []
    end = 0
    for spec in weights:
        offsets.append(_aligned(end))
        end = offsets[-1] + num_bytes(spec)
    return WeightBucket(weights=tuple(weights), offsets=tuple(offsets), nbytes=end)


def whole(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """All of a tensor of which this rank holds a shard, floating-point numbers in ``dtype``. Every rank calls it.

    Rounded before it is gathered: the same numbers, less to send.
    """
    rounded = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
    return rounded.full_tensor() if isinstance(rounded, DTensor) else rounded


class Staging(Protocol):
    """Where a bucket is put for the engines."""

    def begin(self, bucket: WeightBucket, largest: int) -> None:
        """Makes room for ``bucket``; ``largest``: bytes of the push's largest."""

    def put(self, place: int, tensor: torch.Tensor) -> None:
        """Takes the bucket's tensor number ``place``."""

    def handle(self) -> Any:
        """What the engines are told, once all tensors are there."""

    def free(self) -> None:
        """Gives the memory back."""


class SharedMemory:
    """A file in memory that a process of the same user on this machine opens by the path in ``handle``."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._bucket: WeightBucket | None = None

    def begin(self, bucket: WeightBucket, largest: int) -> None:
        """See ``Staging``."""
        self._bucket = bucket
        if len(self._bytes) >= bucket.nbytes and self._file is not None:
            return
        self.free()
        size = max(1, largest)
        self._file = os.memfd_create("rlinf_vlm_weights", os.MFD_CLOEXEC)
        os.ftruncate(self._file, size)  # takes memory where it is written, as any other allocation
        self._bytes = torch.frombuffer(mmap.mmap(self._file, size), dtype=torch.uint8)

    def put(self, place: int, tensor: torch.Tensor) -> None:
        """See ``Staging``."""
        assert self._bucket is not None, "begin comes first"
        _copy(self._bytes, self._bucket, place, tensor)

    def handle(self) -> str:
        """The path."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def free(self) -> None:
        """See ``Staging``."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        if self._file is not None:
            os.close(self._file)
            self._file = None


class DeviceMemory:
    """A buffer on a GPU that other processes on it map by what ``handle`` says."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._bucket: WeightBucket | None = None

    def begin(self, bucket: WeightBucket, largest: int) -> None:
        """See ``Staging``."""
        self._bucket = bucket
        if len(self._bytes) < bucket.nbytes:
            self._bytes = torch.empty(max(1, largest), dtype=torch.uint8, device=self._device)

    def put(self, place: int, tensor: torch.Tensor) -> None:
        """See ``Staging``."""
        assert self._bucket is not None, "begin comes first"
        _copy(self._bytes, self._bucket, place, tensor)

    def handle(self) -> dict[str, Any]:
        """{GPU's uuid: arguments of torch's rebuild_cuda_tensor for the whole buffer, uint8}."""
        from torch.multiprocessing.reductions import reduce_tensor

        torch.cuda.synchronize(self._device)  # another process does not wait for this one's streams
        # Anew each time: each export is counted, and given back by whoever mapped it.
        _, arguments = reduce_tensor(self._bytes)
        return {str(torch.cuda.get_device_properties(self._device).uuid): arguments}

    def free(self) -> None:
        """See ``Staging``."""
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._bucket = None
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()


def _copy(memory: torch.Tensor, bucket: WeightBucket, place: int, tensor: torch.Tensor) -> None:
    """Puts ``tensor`` in its place of ``memory``. ValueError unless it is what the bucket announces."""
    spec, start = bucket.weights[place], bucket.offsets[place]
    if tuple(tensor.shape) != spec.shape or tensor.dtype != getattr(torch, spec.dtype):
        raise ValueError(f"{spec.name}: {tensor.dtype} {list(tensor.shape)} is not the announced {spec}")
    room = memory[start : start + num_bytes(spec)]
    room.view(tensor.dtype).view(spec.shape).copy_(tensor)
