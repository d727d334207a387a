"""FSDP2 around a model: mesh, sharding, what a rank holds, passes that reduce once, and the clipped step.

Invariants. A rank holds only its shards. Gradients are reduced once an optimizer step, after the last micro-batch, and
accumulate in ``reduce_dtype`` before (unless told to reduce each time). FSDP divides the reduced gradient by the number
of ranks: ``backward`` multiplies the loss by it, so that the gradient is that of the sum over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a model is spread over the ranks.

    shard_size: ranks that share one copy; reshard: free gathered parameters after each use (ZeRO-3), else only at the
    end of a step (ZeRO-2); accumulate: keep unsharded gradients until a step's last backward, else reduce after each;
    compute_dtype, reduce_dtype: of forward and backward, and of accumulated and reduced gradients.
    """

    shard_size: int
    reshard: bool
    accumulate: bool
    compute_dtype: torch.dtype
    reduce_dtype: torch.dtype


def make_mesh(device_type: str, world_size: int, shard_size: int) -> DeviceMesh:
    """A mesh [shard], or [replicate, shard] when several copies exist."""
    if shard_size == world_size:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    copies = world_size // shard_size
    return init_device_mesh(device_type, (copies, shard_size), mesh_dim_names=("replicate", "shard"))


class ShardedModel:
    """A module under FSDP2, and what a training step does with it."""

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], sharding: Sharding, device: str) -> None:
        """``module`` has its parameters on the meta device; ``blocks`` are gathered one by one, in order of use."""
        self.module = module
        self.world_size = dist.get_world_size()
        self.device = torch.device(device)
        self._keep_gathered = not sharding.reshard
        self._accumulate = sharding.accumulate
        mesh = make_mesh(self.device.type, self.world_size, sharding.shard_size)
        policy = MixedPrecisionPolicy(
            param_dtype=sharding.compute_dtype, reduce_dtype=sharding.reduce_dtype, cast_forward_inputs=False
        )
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshard)
        _prefetch(blocks)
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self.root: FSDPModule = module  # type: ignore[assignment]  # fully_shard changes the module's class

    def materialise(self) -> None:
        """Gives the shards memory on the device, with no meaningful content yet."""
        # Only parameters are on the meta device; buffers (rotary tables) are real and keep their values.
        self.module._apply(
            lambda tensor: torch.empty_like(tensor, device=self.device) if tensor.is_meta else tensor.to(self.device)
        )

    def parts(self) -> dict[str, tuple[torch.Tensor, tuple[slice, ...]]]:
        """What this rank holds: name in the module -> its memory, and which box of the whole tensor that is (a range a
        dimension). Of every parameter, tied ones once, and every saved buffer; after ``materialise``."""
        saved = self.module.state_dict().keys()
        buffers = {name: buffer for name, buffer in self.module.named_buffers() if name in saved}
        return {name: _own_part(tensor) for name, tensor in {**dict(self.module.named_parameters()), **buffers}.items()}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Fills the shards from rank 0's ``weights`` (empty on the others); after ``materialise``."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
        set_model_state_dict(self.module, dict(weights), options=options)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Adds the gradient of ``loss`` summed over ranks; reduces between ranks when ``is_last``."""
        self.root.set_requires_gradient_sync(is_last or not self._accumulate)
        if self._keep_gathered:
            self.root.set_reshard_after_backward(is_last)
        (loss * self.world_size).backward()

    def release(self) -> None:
        """Frees parameters that a forward pass without a backward pass left gathered."""
        _reshard(self.module)

    def clip_gradients(self, max_norm: float | None) -> float:
        """The global L2 norm of the gradient before clipping it to ``max_norm`` (None: only measured)."""
        trained = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, float("inf") if max_norm is None else max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _reshard(module: nn.Module) -> None:
    """Back to the shards, of ``module`` and all below it."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _prefetch(blocks: Sequence[Any]) -> None:
    """Each block asks for the next one's parameters before it computes, in forward and backward.

    Told, not left to FSDP: by default backward fetches whatever ran before, a frozen tower's last block too, where
    backward never comes.
    """
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
    reached = False
    before = None
    for block in blocks:
        # Fetching itself is fetching nothing; an empty list would mean the default.
        block.set_modules_to_backward_prefetch([before if before is not None and reached else block])
        reached = reached or any(parameter.requires_grad for parameter in block.parameters())
        before = block


@torch.no_grad()
def _own_part(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """This rank's memory of ``tensor``, and its place in the whole."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), tuple(slice(0, size) for size in tensor.shape)
    (chunk,) = tensor.__create_chunk_list__()
    return tensor.to_local(), tuple(
        slice(first, first + size) for first, size in zip(chunk.offsets, chunk.sizes, strict=True)
    )


def make_adamw(
    module: nn.Module,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; one-dimensional ones (norms, biases) are decayed only when told so."""
    # What a forward pass left gathered is another parameter than the shard, and never gets a gradient.
    _reshard(module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1 or decay_norm_and_bias]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_norm_and_bias]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps, fused=fused)
