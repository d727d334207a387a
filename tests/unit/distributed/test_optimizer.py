from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rlinf_vlm.distributed.fsdp import ShardedModel, Sharding, make_adamw


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("reshard", [True, False])
def test_the_optimizer_steps_the_shards_also_after_a_forward_pass_alone(one_process, reshard):
    """A forward pass without backward leaves parameters gathered, which are others than those that get gradients."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    sharding = Sharding(
        shard_size=1, reshard=reshard, accumulate=True, compute_dtype=torch.float32, reduce_dtype=torch.float32
    )
    model = ShardedModel(module, [module[0]], sharding, "cpu")
    model.materialise()
    model.load({name: torch.ones(tensor.shape) for name, tensor in module.state_dict().items()})
    with torch.no_grad():
        module(torch.ones(2, 3))
    optimizer = make_adamw(module, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, decay_norm_and_bias=False, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model.backward(module(torch.ones(2, 3)).sum(), is_last=True)
    optimizer.step()
    for name, tensor in module.state_dict().items():
        # AdamW's first step is lr along the sign of the gradient.
        torch.testing.assert_close(tensor.full_tensor(), torch.full(tensor.shape, 0.9), msg=name)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_norms_and_biases_decay_only_when_told(decay_all, fused):
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 2))
    module[2].requires_grad_(False)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_adamw(
        module, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5, decay_norm_and_bias=decay_all, fused=fused
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    assert optimizer.defaults["fused"] is fused
    optimizer.step()
    # With a zero gradient AdamW only decays: 1 - 0.1 * 0.5 = 0.95.
    assert torch.allclose(module[0].weight, torch.full((2, 3), 0.95))
    vectors = 0.95 if decay_all else 1.0
    for parameter in (module[0].bias, module[1].weight, module[1].bias):
        assert torch.allclose(parameter, torch.full((2,), vectors))
    assert torch.equal(module[2].weight, torch.ones(4, 2)), "frozen parameters are not in the optimizer"
