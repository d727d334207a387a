"""Host tensors to the device without waiting for the copy, and without it reading memory that is gone."""

from __future__ import annotations

import torch


def copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; the caller may drop ``tensor`` at once, and change it unless it is page-locked.

    To a GPU from page-locked memory, which torch's allocator keeps until the copy is done. From ordinary memory, a
    non-blocking copy only "might be synchronous with respect to host" (CUDA, API synchronization behavior), so a table
    that is dropped right after could be read when it is something else already.
    """
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device)
    # Already there, pin_memory gives the tensor itself.
    return tensor.pin_memory().to(device, non_blocking=True)
