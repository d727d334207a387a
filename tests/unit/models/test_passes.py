"""Every way of computing against transformers' own forward of each sample alone, in fp32; and what gets compiled."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlinf_vlm.config.passes import PLAIN, ModelPasses
from rlinf_vlm.data.packing import empty_micro_batch
from rlinf_vlm.models import attention
from rlinf_vlm.models.compiled import compile_blocks, compile_function
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.loading import freeze, wrap_model
from rlinf_vlm.models.lora import LoraSettings, add_adapters
from rlinf_vlm.models.mlp_padding import PaddedMLP
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.models.qwen_vl import LinearPatchEmbed
from rlinf_vlm.models.token_scores import pick_labels, pick_viewed
from tests.packing_by_hand import make_row, mixed_rows, pack
from tests.tiny_models import QWEN_FAMILIES, make_tiny
from tests.unit.models.test_policy import assert_same_gradients, assert_scores, gradients_present, reference, weights_of
from tests.varlen_by_hand import cpu_kernel

ODD = 37
"""An inner width of the vision MLP that no tensor core likes."""


def odd_model(seed: int = 1) -> Any:
    """A Qwen2.5-VL whose vision MLP is of an odd width."""
    hf, config = make_tiny("qwen2.5_vl", seed=seed)
    config.vision_config.intermediate_size = ODD
    torch.manual_seed(seed)
    odd = type(hf)(config).eval()
    assert odd.model.visual.blocks[0].mlp.gate_proj.out_features == ODD
    return odd


def assert_parity(model: VisionLanguageModel, hf: Any, family: str, rows: Any) -> None:
    scores = model(pack(rows, family=family))
    logprobs, _ = reference(hf, rows, family)
    assert_scores(scores.logprobs, logprobs)
    (scores.logprobs * weights_of(rows)).sum().backward()
    (logprobs * weights_of(rows)).sum().backward()
    wanted = {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}
    assert_same_gradients(gradients_present(model), wanted)
    model.zero_grad()
    hf.zero_grad()


@pytest.mark.parametrize("family", QWEN_FAMILIES)
@pytest.mark.parametrize(
    "passes",
    [
        replace(PLAIN, linear_patch_embed=False),
        replace(PLAIN, chunked_loss=False),
        replace(PLAIN, grouped_experts=False),
        replace(PLAIN, checkpointed=0.5),
        replace(PLAIN, checkpointed=1.0),
    ],
    ids=["conv3d", "all logits", "looped experts", "half recomputed", "recomputed"],
)
def test_each_way_gives_the_same(family: str, passes: ModelPasses) -> None:
    hf, _ = make_tiny(family, seed=1)
    model = wrap_model(copy.deepcopy(hf), resolve_family(family), attention="sdpa", passes=passes)
    assert isinstance(model.hf.model.visual.patch_embed, LinearPatchEmbed) is passes.linear_patch_embed
    assert_parity(model, hf, family, mixed_rows(family))


def test_a_padded_mlp_gives_the_same_and_shows_nowhere() -> None:
    hf = odd_model()
    passes = replace(PLAIN, pad_vision_mlp=True)
    model = wrap_model(copy.deepcopy(hf), resolve_family("qwen2.5_vl"), attention="sdpa", passes=passes)
    assert all(isinstance(block.mlp, PaddedMLP) and block.mlp.extra == 27 for block in model.hf.model.visual.blocks)
    assert_parity(model, hf, "qwen2.5_vl", mixed_rows("qwen2.5_vl"))
    names = {model.hf_state_name(name): tensor for name, tensor in model.state_dict().items()}
    assert names.keys() == hf.state_dict().keys()
    assert all(torch.equal(names[name], tensor) for name, tensor in hf.state_dict().items())


def test_a_width_that_is_a_multiple_of_eight_is_left_alone() -> None:
    hf, _ = make_tiny("qwen2.5_vl")
    model = wrap_model(hf, resolve_family("qwen2.5_vl"), attention="sdpa", passes=replace(PLAIN, pad_vision_mlp=True))
    assert not any(isinstance(module, PaddedMLP) for module in model.modules())


@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl"])
def test_half_of_the_layers_are_recomputed(family: str) -> None:
    hf, _ = make_tiny(family)
    model = wrap_model(hf, resolve_family(family), attention="sdpa", passes=replace(PLAIN, checkpointed=0.5))
    flags = [[block.gradient_checkpointing for block in blocks] for blocks in model.blocks()]
    assert all(sum(tower) == -(-len(tower) // 2) for tower in flags)


@pytest.mark.parametrize("no_grad", [True, False])
def test_a_frozen_tower_gives_the_same(no_grad: bool) -> None:
    hf, _ = make_tiny("qwen3_vl", seed=1)
    passes = replace(PLAIN, frozen_vision_no_grad=no_grad)
    model = wrap_model(copy.deepcopy(hf), resolve_family("qwen3_vl"), attention="sdpa", passes=passes)
    freeze(model, model.spec, vision_tower=True, merger=True)
    recorded: list[bool] = []
    model.hf.model.visual.merger.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_(not name.startswith("model.visual."))
    assert_parity(model, hf, "qwen3_vl", mixed_rows("qwen3_vl"))
    assert recorded == [not no_grad]


class CountingBackend:
    """Runs a graph as it was traced, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def compiled_model(monkeypatch: Any, hf: Any, family: str, backend: Any, *, attention_name: str) -> VisionLanguageModel:
    """The policy with compiled blocks; ``varlen`` stands for a kernel of the tests that runs on the CPU."""
    torch._dynamo.reset()
    monkeypatch.setattr(attention, "_varlen_kernel", cpu_kernel)
    model = wrap_model(copy.deepcopy(hf), resolve_family(family), attention=attention_name)
    for blocks in model.blocks():
        compile_blocks(blocks, whole=attention_name == "varlen", backend=backend)
    return model


GRAPHS = {"qwen2_vl": 2, "qwen2.5_vl": 3, "qwen3_vl": 2, "qwen3_vl_moe": 2}
"""A decoder layer and a vision block; Qwen2.5-VL's vision blocks look at windows or at the whole image."""


@pytest.mark.parametrize("family", QWEN_FAMILIES)
def test_a_block_is_one_graph_whatever_the_lengths(monkeypatch: Any, family: str) -> None:
    hf, _ = make_tiny(family, seed=1)
    backend = CountingBackend()
    model = compiled_model(monkeypatch, hf, family, backend, attention_name="varlen")
    for seed in range(4):
        rows = mixed_rows(family, seed=seed)[: 5 - seed % 3]
        assert_parity(model, hf, family, rows)
    generator = torch.Generator().manual_seed(0)
    text_only = [make_row([length], 2, generator) for length in (32, 64, 128)]
    assert_scores(model(pack(text_only, family=family)).logprobs, reference(hf, text_only, family)[0])
    model(empty_micro_batch()).logprobs.sum().backward()
    assert backend.graphs == GRAPHS[family]
    model.eval()
    with torch.no_grad():
        for seed in range(2):
            model(pack(mixed_rows(family, seed=seed), family=family))
    assert backend.graphs == 2 * GRAPHS[family]


@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl_moe"])
def test_layers_with_adapters_are_compiled_too(monkeypatch: Any, family: str) -> None:
    hf, _ = make_tiny(family, seed=1)
    targets = ("language_model", "vision_tower")
    settings = LoraSettings(rank=4, alpha=8, dropout=0.0, targets=targets, frozen=frozenset(), seed=3)
    add_adapters(hf, resolve_family(family), settings)
    for name, parameter in hf.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    backend = CountingBackend()
    model = compiled_model(monkeypatch, hf, family, backend, attention_name="varlen")
    plain = wrap_model(copy.deepcopy(hf), resolve_family(family), attention="sdpa")
    for seed in range(3):
        batch = pack(mixed_rows(family, seed=seed)[: 5 - seed], family=family)
        for each in (model, plain):
            each.zero_grad()
            each(batch).logprobs.sum().backward()
        assert_scores(model(batch).logprobs, plain(batch).logprobs)
        assert_same_gradients(gradients_present(model), gradients_present(plain))
    # The first vision block's input needs no gradient, its base being frozen: a graph of its own.
    assert backend.graphs <= GRAPHS[family] + 1


@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl_moe"])
def test_around_dense_attention_a_block_is_few_graphs(monkeypatch: Any, family: str) -> None:
    hf, _ = make_tiny(family, seed=1)
    backend = CountingBackend()
    model = compiled_model(monkeypatch, hf, family, backend, attention_name="sdpa")
    counts = []
    for seed in range(6):
        assert_parity(model, hf, family, mixed_rows(family, seed=seed)[: 5 - seed % 3])
        counts.append(backend.graphs)
    assert counts[1:] == [counts[1]] * 5


def test_inductor_s_code_gives_the_same(monkeypatch: Any) -> None:
    hf = odd_model()
    model = compiled_model(monkeypatch, hf, "qwen2.5_vl", "inductor", attention_name="varlen")
    for seed in range(2):
        assert_parity(model, hf, "qwen2.5_vl", mixed_rows("qwen2.5_vl", seed=seed))


def test_labels_are_picked_by_one_graph() -> None:
    backend = CountingBackend()
    picked = compile_function(pick_labels, backend)
    for count in (5, 2, 9, 1, 0):
        logits = torch.randn(count, 11, generator=torch.Generator().manual_seed(count))
        targets = torch.arange(count)
        logprobs, argmax = picked(logits, targets)
        wanted = logits.log_softmax(-1)
        torch.testing.assert_close(logprobs, wanted[torch.arange(count), targets])
        assert torch.equal(argmax, wanted.argmax(-1))
    assert backend.graphs == 1


def test_labels_of_a_sampled_distribution_are_picked_by_one_graph() -> None:
    backend = CountingBackend()
    view = {"temperature": 0.7, "banned": torch.tensor([2, 5]), "entropy": "gradient"}
    picked = compile_function(pick_viewed, backend)
    for count in (5, 2, 9, 1, 0):
        logits = torch.randn(count, 11, generator=torch.Generator().manual_seed(count))
        targets = torch.zeros(count, dtype=torch.int64)
        for found, wanted in zip(picked(logits, targets, **view), pick_viewed(logits, targets, **view), strict=True):
            torch.testing.assert_close(found, wanted)
    assert backend.graphs == 1
