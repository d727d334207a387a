"""The policy as FSDP2's root, in one process: gradients as without sharding, whatever the micro-batch lacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from rlinf_vlm.config.passes import ModelPasses
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.loading import blocks_in_order, wrap_model
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import IGNORE_INDEX, MicroBatch
from tests.packing_by_hand import mixed_rows, pack
from tests.tiny_models import make_tiny


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(model: VisionLanguageModel, policy: MixedPrecisionPolicy) -> VisionLanguageModel:
    mesh = init_device_mesh("cpu", (1,))
    for block in blocks_in_order(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def batches(family: str) -> list[MicroBatch]:
    """One with images, one of text only, one without labels."""
    rows = mixed_rows(family)
    unlabelled = [replace(row, labels=torch.full_like(row.labels, IGNORE_INDEX)) for row in rows]
    return [pack(rows, family=family), pack(rows[:1], family=family), pack(unlabelled, family=family)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "tied"), [("qwen2.5_vl", True), ("qwen3_vl", False), ("qwen3_vl_moe", False)])
def test_sharded_equals_plain(one_process: None, family: str, tied: bool, checkpointing: bool) -> None:
    hf, _ = make_tiny(family, tied=tied)
    spec = resolve_family(family)
    plain = wrap_model(copy.deepcopy(hf), spec, attention="sdpa")
    model = wrap_model(hf, spec, attention="sdpa", passes=ModelPasses(checkpointed=float(checkpointing)))
    model = shard(model, MixedPrecisionPolicy(cast_forward_inputs=False))
    model.chunk = 4
    for batch in batches(family):
        results = []
        for module in (plain, model):
            module.zero_grad(set_to_none=True)
            scores = module(batch)
            scores.logprobs.sum().backward()
            results.append(scores.logprobs.detach())
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
        wanted = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            full = parameter.grad.full_tensor()  # type: ignore[attr-defined]
            torch.testing.assert_close(full, wanted[name].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2.5_vl", "qwen3_vl"])
def test_fp32_masters_with_bf16_computation(one_process: None, family: str) -> None:
    hf, _ = make_tiny(family)
    spec = resolve_family(family)
    plain = wrap_model(copy.deepcopy(hf), spec, attention="sdpa")
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    model = shard(wrap_model(hf, spec, attention="sdpa"), mixed)
    batch = batches(family)[0]
    scores = model(batch)
    assert scores.logprobs.dtype == torch.float32
    difference = (scores.logprobs - plain(batch).logprobs).detach().abs()
    assert 0.0 < float(difference.max()) < 0.3
    scores.logprobs.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
