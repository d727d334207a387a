"""One actor rank's part in sending weights to the engines.

    policy's shards -> whole tensors, one by one, on all ranks -> names and shapes of the model folder -> staging memory

Adapters are merged on the way: an engine gets W + s B A, and knows of no adapters. Every rank calls everything in the
same order, since gathering is collective. Not here: when weights are sent, and how engines take them.
"""

from __future__ import annotations

from typing import Any

import torch

from rlinf_vlm.config.schema import Config
from rlinf_vlm.distributed.weight_push import Bucket, DeviceMemory, SharedMemory, Staging, make_buckets, whole
from rlinf_vlm.models.exporting import open_engine_weights
from rlinf_vlm.models.lora import adapter_names, adapter_scale, merged
from rlinf_vlm.models.naming import Unit
from rlinf_vlm.types import PushSettings, WeightBucket
from rlinf_vlm.workers.model import DTYPES, Policy


class WeightSender:
    """Sends the weights of ``policy``. Every rank makes one."""

    def __init__(self, config: Config, policy: Policy, device: torch.device, rank: int, settings: PushSettings) -> None:
        """For nccl, rank 0 waits here for the engines."""
        model, dtype = config.actor.model, config.rollout.dtype
        self._policy = policy
        self._device = device
        self._dtype = DTYPES[config.actor.compute_dtype if dtype == "auto" else dtype]
        self._limit = config.rollout.sync_bucket_mib << 20
        self._scale = adapter_scale(policy.adapter_config) if policy.adapter_config is not None else 0.0
        self._weights = open_engine_weights(
            model.model_path, policy.module.spec, trust_remote_code=model.trust_remote_code
        )
        self._units: tuple[Unit, ...] = ()
        self._buckets: list[Bucket] = []
        self._state: dict[str, torch.Tensor] = {}
        self._staging = _staging(settings, device, rank)

    def plan(self, *, everything: bool) -> tuple[WeightBucket, ...]:
        """The buckets of the next push, the same on all ranks."""
        self._policy.sharded.release()  # gathered parameters are other tensors than the shards
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the engine on this GPU wakes up now
        module = self._policy.module
        self._state = {module.hf_state_name(name): tensor for name, tensor in module.state_dict().items()}
        trained = {module.hf_state_name(name) for name, value in module.named_parameters() if value.requires_grad}
        self._units = self._weights.units if everything else self._weights.changed(trained)
        self._buckets = make_buckets([self._weights.specs(unit, self._dtype) for unit in self._units], self._limit)
        return tuple(bucket.content for bucket in self._buckets)

    @torch.no_grad()
    def send(self, index: int) -> Any:
        """Gathers the tensors of bucket ``index`` of the plan, and hands them over.

        What the engines are told: the path of a file (shm, from rank 0), {GPU's uuid: how to map it} (ipc, from every
        rank), or nothing (nccl, where rank 0 returns when the engines have taken all).
        """
        bucket = self._buckets[index]
        if self._staging is not None:
            self._staging.begin(bucket.content, max(other.content.nbytes for other in self._buckets))
        place = 0
        for unit in (self._units[number] for number in bucket.units):
            tensors = {name: self._gathered(name) for name in unit.memory}
            if self._staging is None:
                continue
            made = self._weights.to_folder(unit, tensors)
            for name in unit.disk:
                self._staging.put(place, made[name])
                place += 1
        return None if self._staging is None else self._staging.handle()

    def end(self) -> None:
        """Frees what the push took."""
        self._state = {}
        if self._staging is not None:
            self._staging.free()

    def close(self) -> None:
        """As ``end``; for the last time."""
        self.end()

    def _gathered(self, name: str) -> torch.Tensor:
        """The whole weight of this name, with its adapter where it has one."""
        base = self._state[name]
        a, b = adapter_names(name)
        if a not in self._state:
            return whole(base, self._dtype)
        wide = (whole(self._state[part], torch.float32) for part in (a, b))
        return merged(whole(base, torch.float32), *wide, scale=self._scale).to(self._dtype)


def _staging(settings: PushSettings, device: torch.device, rank: int) -> Staging | None:
    """Where this rank puts buckets; None where another rank does it for all."""
    if settings.transport == "ipc":
        return DeviceMemory(device)
    if rank:
        return None
    if settings.transport == "shm":
        return SharedMemory()
    from rlinf_vlm.workers.push_nccl import Broadcast  # loads vLLM

    return Broadcast(settings)
