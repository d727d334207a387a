from __future__ import annotations

import pytest
import torch
from torch import nn

from rlinf_vlm.distributed.fsdp import make_adamw


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
