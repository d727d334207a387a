"""The variable-length kernels and compiled blocks against the sdpa attention, on a GPU in bf16."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from rlinf_vlm.config.passes import PLAIN, ModelPasses
from rlinf_vlm.models.attention import choose_attention
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.loading import wrap_model
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import MicroBatch
from tests.packing_by_hand import mixed_rows, pack
from tests.tiny_models import QWEN_FAMILIES, make_tiny

pytestmark = pytest.mark.gpu


def to_gpu(batch: MicroBatch) -> MicroBatch:
    moved: dict[str, Any] = {
        field.name: getattr(batch, field.name).to("cuda")
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), torch.Tensor)
    }
    moved["image_inputs"] = {name: tensor.to("cuda") for name, tensor in batch.image_inputs.items()}
    return replace(batch, **moved)


COMPILED = replace(PLAIN, compile=True, pad_vision_mlp=True)


def build(family: str, attention: str, dtype: torch.dtype, passes: ModelPasses = PLAIN) -> VisionLanguageModel:
    hf, _ = make_tiny(family, seed=1)
    model = wrap_model(copy.deepcopy(hf), resolve_family(family), attention=attention, passes=passes).to("cuda")
    for parameter in model.parameters():
        # Not module.to(dtype): the rotary tables stay in fp32.
        parameter.data = parameter.data.to(dtype)
    return model


def run(model: VisionLanguageModel, batch: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scores = model(batch)
    scores.logprobs.sum().backward()
    return scores.logprobs.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", QWEN_FAMILIES)
@pytest.mark.parametrize(
    ("attention", "passes"), [("varlen", PLAIN), ("flash_attention_2", PLAIN), ("varlen", COMPILED)]
)
def test_kernels_agree_with_sdpa(family: str, attention: str, passes: ModelPasses) -> None:
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    torch._dynamo.reset()
    batch = to_gpu(pack(mixed_rows(family), family=family))
    exact, exact_gradients = run(build(family, "sdpa", torch.float32), batch)
    results = {"sdpa": run(build(family, "sdpa", torch.bfloat16), batch)}
    results[attention] = run(build(family, attention, torch.bfloat16, passes), batch)
    errors = {name: float((logprobs - exact).abs().mean()) for name, (logprobs, _) in results.items()}
    # Rounding to bf16 is the same for both; the kernel may not add to it.
    assert errors[attention] < 1.5 * errors["sdpa"] + 5e-3, errors
    worst = {}
    for name, (_, gradients) in results.items():
        assert gradients.keys() == exact_gradients.keys()
        total = sum(float((gradients[n] - g).square().sum()) for n, g in exact_gradients.items())
        worst[name] = (total / sum(float(g.square().sum()) for g in exact_gradients.values())) ** 0.5
    assert worst[attention] < 1.5 * worst["sdpa"] + 1e-2, worst


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_compiled_blocks_are_compiled_once(family: str) -> None:
    torch._dynamo.reset()
    model = build(family, "varlen", torch.bfloat16, COMPILED)
    counts = []
    for seed in range(8):
        rows = mixed_rows(family, seed=seed)[: 5 - seed % 3]
        run(model, to_gpu(pack(rows, family=family)))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[1:] == [counts[0]] * 7


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_kernel_never_leaks_between_samples(family: str) -> None:
    model = build(family, "varlen", torch.bfloat16)
    rows = mixed_rows(family)
    ids = rows[1].input_ids.clone()
    ids[0] = (ids[0] + 1) % 90 + 3
    changed = [rows[0], replace(rows[1], input_ids=ids), *rows[2:]]
    with torch.no_grad():
        before = model(to_gpu(pack(rows, family=family))).logprobs
        after = model(to_gpu(pack(changed, family=family))).logprobs
    assert torch.equal(before[:4], after[:4]) and torch.equal(before[7:], after[7:])
    assert not torch.equal(before[4:7], after[4:7])


def test_fp32_on_gpu_equals_cpu() -> None:
    family = "qwen2.5_vl"
    batch = pack(mixed_rows(family), family=family)
    on_cpu = wrap_model(make_tiny(family, seed=1)[0], resolve_family(family), attention="sdpa")
    logprobs, _ = run(build(family, "sdpa", torch.float32), to_gpu(batch))
    torch.testing.assert_close(logprobs.cpu(), on_cpu(batch).logprobs.detach(), rtol=1e-4, atol=1e-4)


def test_auto_takes_the_kernel() -> None:
    assert choose_attention("auto", device="cuda", dtype=torch.bfloat16)[0] == "varlen"
