"""The trainer's end of vLLM's own NCCL weight transfer: rank 0 of a group of its own, the engines' GPUs the others.

vLLM's worker side receives tensor by tensor (not packed), in the order that it is told; so they are broadcast here.
The only use of vLLM outside of the engine's process; imported when weights are sent that way and not before.
"""

from __future__ import annotations

from typing import Any

import torch

from rlinf_vlm.types import PushSettings, WeightBucket


class Broadcast:
    """``weight_push.Staging`` that keeps nothing: each tensor goes to all engines at once. Made by rank 0 alone."""

    def __init__(self, settings: PushSettings) -> None:
        """Waits until all engines have come to the rendezvous."""
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self._group: Any = trainer_init(
            {
                "master_address": settings.address,
                "master_port": settings.port,
                "world_size": settings.world_size,
            }
        )

    def begin(self, bucket: WeightBucket, largest: int) -> None:
        """Nothing to make room for."""

    def put(self, place: int, tensor: torch.Tensor) -> None:
        """Broadcasts ``tensor``; returns when it has been taken, so that its memory is free for the next."""
        stream = torch.cuda.current_stream()
        self._group.broadcast(tensor.contiguous(), src=0, stream=stream)
        stream.synchronize()

    def handle(self) -> None:
        """The engines know what comes."""

    def free(self) -> None:
        """Nothing is kept."""
