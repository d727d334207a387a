"""Copies a rank's tensors to the host, so that the training can change them while the copies are written.

One buffer holds all copies. It is page-locked where there is a GPU (a copy then runs at the speed of the bus, an
ordinary one at a tenth of it) and kept from one checkpoint to the next, since getting and locking the pages takes
longer than the copy. Host memory: as much as the rank's shards of weights and optimizer state, from the first
checkpoint on. Loading processes, which are forked, do not get the buffer: of locked pages the kernel would make each of
them a copy.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

ALIGNMENT = 256
"""Bytes; where each copy starts in the buffer."""


class HostCopy(AsyncStager):
    """What ``torch.distributed.checkpoint.async_save`` copies with. Overwrites the copies of the time before."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @property
    def should_synchronize_after_execute(self) -> bool:
        """The copies are finished when ``stage`` returns."""
        return False

    def stage(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The same keys with copies on the host; sharded tensors stay sharded."""
        shards = {key: _local(tensor) for key, tensor in state_dict.items()}
        sizes = [-(-shard.nbytes // ALIGNMENT) * ALIGNMENT for shard in shards.values()]
        self._reserve(sum(sizes), any(shard.is_cuda for shard in shards.values()))
        starts = accumulate(sizes, initial=0)
        copies = {}
        for (key, shard), start in zip(shards.items(), starts, strict=False):  # starts has the end as well
            copies[key] = self._buffer[start : start + shard.nbytes].view(shard.dtype).view(shard.shape)
            copies[key].copy_(shard, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {key: _like(tensor, copies[key]) for key, tensor in state_dict.items()}

    def synchronize_staging(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Gives the buffer back."""
        self._reserve(0, on_gpu=False)

    def _reserve(self, size: int, on_gpu: bool) -> None:
        if size == self._buffer.nbytes:
            return
        if self._buffer.is_pinned():
            _check(torch.cuda.cudart().cudaHostUnregister(self._buffer.data_ptr()))
        self._buffer = _pages(size)
        if on_gpu and size:
            # Not by pin_memory=True: its allocator rounds up to the next power of two, up to twice the memory.
            _check(torch.cuda.cudart().cudaHostRegister(self._buffer.data_ptr(), size, 0))


def _pages(size: int) -> torch.Tensor:
    """``size`` bytes [size] uint8 that a forked process does not inherit."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, size)
    pages.madvise(mmap.MADV_DONTFORK)
    with suppress(OSError):  # a kernel without huge pages takes longer, that is all
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _check(status: Any) -> None:
    if int(status) != 0:
        raise RuntimeError(f"page-locking host memory for a checkpoint failed (CUDA error {int(status)})")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _like(tensor: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """``copy`` in the place of ``tensor``'s shard. The public way to a DTensor would move it to the mesh's device."""
    return DTensor(copy, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else copy
