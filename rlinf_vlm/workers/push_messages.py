"""What vLLM's weight-transfer engines are told of a bucket: where it is, and what is in it.

vLLM's IPC engine, not packed, takes a handle for each weight; a bucket has one, of which these are made. What it and
the NCCL engine are told is the same in vLLM 0.26 and 0.32. Imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlinf_vlm.types import WeightBucket


def bucket_message(transport: str, bucket: WeightBucket, handles: Any) -> dict[str, Any]:
    """What vLLM's weight-transfer engine of ``transport`` is told of ``bucket``.

    handles: of shm the path of the file; of ipc for each GPU, by its uuid, the arguments of torch's
    ``rebuild_cuda_tensor`` for the bucket as one uint8 tensor; of nccl None: the weights are broadcast one by one.
    """
    message: dict[str, Any] = {
        "names": [weight.name for weight in bucket.weights],
        "dtype_names": [weight.dtype for weight in bucket.weights],
        "shapes": [list(weight.shape) for weight in bucket.weights],
    }
    if transport == "shm":
        return {**message, "path": handles, "nbytes": bucket.nbytes, "offsets": list(bucket.offsets)}
    if transport == "ipc":
        places = zip(bucket.weights, bucket.offsets, strict=True)
        views = [
            {gpu: view_handle(handle, weight.dtype, weight.shape, offset) for gpu, handle in handles.items()}
            for weight, offset in places
        ]
        return {**message, "ipc_handles": views}
    return message


def view_handle(handle: Sequence[Any], dtype_name: str, shape: Sequence[int], offset: int) -> tuple[Any, ...]:
    """The arguments of ``rebuild_cuda_tensor`` for the tensor that begins ``offset`` bytes into the uint8 tensor of
    ``handle``: of its arguments 1, 2, 3 and 5 are size, stride, offset in elements, and dtype."""
    dtype = getattr(torch, dtype_name)
    view = list(handle)
    view[1], view[2] = torch.Size(shape), torch.empty(shape, device="meta").stride()
    view[3], view[5] = (handle[3] + offset) // dtype.itemsize, dtype
    return tuple(view)
