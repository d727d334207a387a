"""FSDP2 around a model: mesh, sharding, weights from rank 0, passes that reduce once, and the clipped step.

Invariants. Rank 0 alone reads the weights; the others hold only their shard. Gradients are reduced once an optimizer
step, after the last micro-batch, and accumulate in ``reduce_dtype`` before. FSDP divides the reduced gradient by the
number of ranks: ``backward`` multiplies the loss by it, so that the gradient is that of the sum over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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

    shard_size: ranks that share one copy; reshard: free gathered parameters after each use (ZeRO-3);
    compute_dtype, reduce_dtype: of forward and backward, and of accumulated and reduced gradients.
    """

    shard_size: int
    reshard: bool
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

    def __init__(self, module: nn.Module, blocks: Iterable[nn.Module], sharding: Sharding, device: str) -> None:
        """``module`` has its parameters on the meta device; ``blocks`` are gathered one by one, in order of use."""
        self.module = module
        self.world_size = dist.get_world_size()
        self.device = torch.device(device)
        self._keep_gathered = not sharding.reshard
        mesh = make_mesh(self.device.type, self.world_size, sharding.shard_size)
        policy = MixedPrecisionPolicy(
            param_dtype=sharding.compute_dtype, reduce_dtype=sharding.reduce_dtype, cast_forward_inputs=False
        )
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=sharding.reshard)
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        self.root: FSDPModule = module  # type: ignore[assignment]  # fully_shard changes the module's class

    def materialise(self) -> None:
        """Gives the shards memory on the device, with no meaningful content yet."""
        # Only parameters are on the meta device; buffers (rotary tables) are real and keep their values.
        self.module._apply(
            lambda tensor: torch.empty_like(tensor, device=self.device) if tensor.is_meta else tensor.to(self.device)
        )

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Fills the shards from rank 0's ``weights`` (empty on the others); after ``materialise``."""
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
        set_model_state_dict(self.module, dict(weights), options=options)

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Adds the gradient of ``loss`` summed over ranks; reduces between ranks when ``is_last``."""
        self.root.set_requires_gradient_sync(is_last)
        if self._keep_gathered:
            self.root.set_reshard_after_backward(is_last)
        (loss * self.world_size).backward()

    def clip_gradients(self, max_norm: float | None) -> float:
        """The global L2 norm of the gradient before clipping it to ``max_norm`` (None: only measured)."""
        trained = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, float("inf") if max_norm is None else max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def make_adamw(
    module: nn.Module,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; one-dimensional ones (norms, biases) are decayed only when told so."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1 or decay_norm_and_bias]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1 and not decay_norm_and_bias]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps, fused=True)
