"""Memory that a loading process shares with the training, so that what it sends is not copied.

Invariants: shared memory is taken while a batch is made, never while it is sent. There a queue's thread would have to
do it, and where none is left, that thread drops the batch and the training waits for ever. Outside of a loading process
nothing is shared.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

SHARED = Path("/dev/shm")
"""Where Linux has it."""
MIB = 1024**2


class SharedMemoryError(Exception):
    """There is not enough shared memory for a batch; one line with the remedy."""


def empty_tensor(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A contiguous tensor to be filled, of ``shape`` [n, ...]; in a loading process in shared memory."""
    if get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    with _told(size):
        storage = torch.UntypedStorage._new_shared(size)
    return torch.empty(0, dtype=dtype).set_(storage).view(tuple(shape))


def share(tensors: Iterable[torch.Tensor]) -> None:
    """In a loading process, moves the tensors to shared memory, with all of the storage that they are views of."""
    if get_worker_info() is None:
        return
    for tensor in tensors:
        with _told(tensor.untyped_storage().nbytes()):
            tensor.share_memory_()


@contextmanager
def _told(size: int) -> Iterator[None]:
    """SharedMemoryError where ``size`` bytes cannot be had."""
    try:
        yield
    except RuntimeError as error:
        free = f"; {SHARED} has {_mib(shutil.disk_usage(SHARED).free)} left" if SHARED.is_dir() else ""
        reason = " ".join(str(error).split())
        worker = get_worker_info()
        raise SharedMemoryError(
            f"data.num_workers={worker.num_workers if worker else 0}: a loading process gets no {_mib(size)} of shared "
            f"memory ({reason}{free}); start the container with a larger --shm-size, take fewer rows a step, or set "
            "data.num_workers=0"
        ) from error


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"
