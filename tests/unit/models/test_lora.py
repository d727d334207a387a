"""Adapters: which layers, their first values, gradients, and the folder that peft reads back."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText

from rlinf_vlm.config.actor import ModelConfig
from rlinf_vlm.config.passes import ModelPasses
from rlinf_vlm.models.families import FamilySpec, resolve_family
from rlinf_vlm.models.folder import read_model_folder
from rlinf_vlm.models.loading import build_model, wrap_model
from rlinf_vlm.models.lora import (
    ADAPTER_FILE,
    LoraSettings,
    adapted_modules,
    adapter_config,
    add_adapters,
    check_scale,
    is_adapter,
    linear_layers,
    write_adapter,
    write_peft_files,
)
from rlinf_vlm.models.parts import (
    LinearLayer,
    adapted_layers,
    choose_linears,
    count_trained,
    stored_linears,
    stored_part,
)
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import UserError
from tests.packing_by_hand import alone, mixed_rows, pack
from tests.tiny_models import GENERIC, QWEN_FAMILIES, make_tiny

FAMILIES = (*QWEN_FAMILIES, GENERIC)
EVERYWHERE = ("language_model", "vision_tower", "merger")
LANGUAGE_NAMES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def spec_of(family: str) -> FamilySpec:
    return resolve_family("auto" if family == GENERIC else family)


def settings(*targets: str, **changes: Any) -> LoraSettings:
    made: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0, "frozen": frozenset(), "seed": 3, **changes}
    return LoraSettings(targets=targets or ("language_model",), **made)


def with_adapters(family: str, *targets: str, tied: bool = False, **changes: Any) -> tuple[VisionLanguageModel, Any]:
    """The policy with adapters, and the untouched transformers model with the same base weights."""
    hf, _ = make_tiny(family, seed=1, tied=tied)
    own = copy.deepcopy(hf)
    add_adapters(own, spec_of(family), settings(*targets, **changes))
    return wrap_model(own, spec_of(family), attention="sdpa"), hf


def train_a_little(model: VisionLanguageModel, family: str, steps: int = 3) -> list[float]:
    """Steps large enough that B is far from zero."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = pack(mixed_rows(family), family=family)
    losses = []
    for _ in range(steps):
        loss = -model(batch).logprobs.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def adapters(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    state = {model.hf_state_name(name): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if is_adapter(name)}


def save(model: VisionLanguageModel, base: Path, folder: Path, *, rank: int = 4, alpha: int = 8) -> None:
    targets = [layer.path for layer in adapted_modules(model.hf, model.spec)]
    config = adapter_config(model_path=base, rank=rank, alpha=alpha, dropout=0.1, targets=targets)
    write_adapter(folder, adapters(model), config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(family: str, tied: bool) -> None:
    model, hf = with_adapters(family, *EVERYWHERE, tied=tied)
    batch = pack(mixed_rows(family), family=family)
    plain = wrap_model(copy.deepcopy(hf), spec_of(family), attention="sdpa")
    with torch.no_grad():
        assert torch.equal(model(batch).logprobs, plain(batch).logprobs)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(is_adapter(name) for name in trained)
    assert {name for name, _ in model.named_parameters() if is_adapter(name)} == trained
    names = [model.hf_state_name(name) for name in model.state_dict()]
    assert set(names) - adapters(model).keys() == set(hf.state_dict())
    assert len(names) == len(set(names))
    assert model.tied_names() == plain.tied_names()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_is_every_linear_layer_of_the_decoder_and_nothing_else(family: str) -> None:
    model, _ = with_adapters(family)
    found = adapted_modules(model.hf, model.spec)
    assert {layer.part for layer in found} == {"language_model"}
    # A mixture's experts are fused tensors and its router is none of torch's linear layers.
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj"} if family == "qwen3_vl_moe" else LANGUAGE_NAMES
    assert {layer.name for layer in found} == wanted
    assert len(found) == 2 * len(wanted)
    assert type(model.hf.get_output_embeddings()) is nn.Linear


def test_a_name_is_looked_for_in_the_language_model_only() -> None:
    """Qwen2.5-VL's vision tower has gate_proj, up_proj and down_proj too; peft's own matching takes them all."""
    model, _ = with_adapters("qwen2.5_vl", "gate_proj", "vision_tower.qkv", "merger")
    assert [layer.path for layer in adapted_modules(model.hf, model.spec)] == [
        "model.visual.blocks.0.attn.qkv",
        "model.visual.blocks.1.attn.qkv",
        "model.visual.merger.mlp.0",
        "model.visual.merger.mlp.2",
        "model.language_model.layers.0.mlp.gate_proj",
        "model.language_model.layers.1.mlp.gate_proj",
    ]


def test_targets_that_match_nothing_are_refused() -> None:
    hf, _ = make_tiny("qwen2.5_vl")
    layers = linear_layers(hf, resolve_family("qwen2.5_vl"))
    for target in ("qkv", "lm_head", "embed_tokens", "vision_tower.q_proj", "all-linear"):
        with pytest.raises(UserError, match="names no linear layer; .*there are language_model") as caught:
            choose_linears(layers, ["q_proj", target], ())
        assert repr(target) in str(caught.value) and "\n" not in str(caught.value)
    for target, guess in (
        ("qkv", "vision_tower.qkv"),
        ("vision_tower.q_proj", "q_proj"),
        ("visoin_tower", "vision_tower"),
    ):
        with pytest.raises(UserError, match=f"did you mean '{guess}'"):
            choose_linears(layers, [target], ())
    assert "vision_tower (vision_tower.down_proj, " in str(caught.value) and "merger (merger.0, " in str(caught.value)


def test_adapters_of_another_scale_are_refused(tmp_path: Path) -> None:
    """The weights alone would fit, and give other scores."""
    model, _ = with_adapters("qwen2.5_vl", "q_proj")
    save(model, tmp_path, tmp_path / "adapter")
    targets = [layer.path for layer in adapted_modules(model.hf, model.spec)]
    same, other = (
        adapter_config(model_path="elsewhere", rank=4, alpha=alpha, dropout=0.5, targets=targets) for alpha in (8, 4)
    )
    check_scale(tmp_path / "adapter", same)
    check_scale(tmp_path / "nowhere", other)
    with pytest.raises(UserError, match="lora_alpha=4: .* was trained with 8; set actor.model.lora_alpha=8"):
        check_scale(tmp_path / "adapter", other)


def test_frozen_parts_get_no_adapters() -> None:
    hf, _ = make_tiny("qwen3_vl")
    layers = linear_layers(hf, resolve_family("qwen3_vl"))
    kept = choose_linears(layers, EVERYWHERE, {"vision_tower"})
    assert {layer.part for layer in kept} == {"merger", "language_model"}
    with pytest.raises(UserError, match=r"actor.model.freeze.language_model=true leaves no layer for adapters"):
        choose_linears(layers, ["language_model", "q_proj"], {"language_model"})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_header_tells_what_the_model_tells(family: str, tmp_path: Path) -> None:
    hf, _ = make_tiny(family)
    hf.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    spec, shapes = spec_of(family), read_model_folder(str(tmp_path)).shapes
    by_name = {layer.path: layer for layer in linear_layers(hf, spec)}
    read = stored_linears(shapes, spec)
    assert sorted((layer.part, layer.name, layer.inputs, layer.outputs) for layer in read) == sorted(
        (layer.part, layer.name, layer.inputs, layer.outputs) for layer in by_name.values()
    )
    for targets in (("language_model",), EVERYWHERE, ("q_proj", "merger")):
        add_adapters(copied := copy.deepcopy(hf), spec, settings(*targets))
        wanted = sum(p.numel() for p in copied.parameters() if p.requires_grad)
        config = ModelConfig(model_type="x", model_path="x", is_lora=True, lora_rank=4, lora_target=targets)
        assert count_trained(config, shapes, spec) == wanted
        chosen = adapted_layers(config, shapes, spec)
        assert chosen is not None and len(chosen) == len(adapted_modules(copied, spec))
    frozen = ModelConfig(model_type="x", model_path="x", freeze={"vision_tower": True})
    vision = sum(p.numel() for n, p in hf.named_parameters() if stored_part(n, spec) == "vision_tower")
    total = sum(p.numel() for p in hf.parameters())
    assert vision > 0 and count_trained(frozen, shapes, spec) == total - vision


def test_names_of_older_folders() -> None:
    qwen, generic = resolve_family("qwen2.5_vl"), resolve_family("auto")
    assert [
        stored_part(name, qwen)
        for name in (
            "visual.blocks.0.attn.qkv.weight",
            "visual.merger.mlp.0.weight",
            "model.layers.3.self_attn.q_proj.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "eyes.weight",
        )
    ] == ["vision_tower", "merger", "language_model", "language_model", "language_model", None]
    assert [
        stored_part(name, generic)
        for name in (
            "language_model.model.layers.0.mlp.up_proj.weight",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            "multi_modal_projector.linear_1.weight",
        )
    ] == ["language_model", "vision_tower", "merger"]


def test_where_the_header_does_not_suffice_nothing_is_refused() -> None:
    config = ModelConfig(model_type="x", model_path="x", is_lora=True, lora_target=["wqkv"])
    spec = resolve_family("auto")
    assert adapted_layers(config, {}, spec) is None and count_trained(config, {}, spec) is None
    strange = {"decoder.0.wqkv.weight": (4, 4), "model.vision_tower.fc.weight": (4, 4)}
    assert adapted_layers(config, strange, spec) is None and count_trained(config, strange, spec) is None
    # A generic model may be renamed when it is read; it is judged once it is there.
    renamed = {"model.language_model.layers.0.qkv.weight": (4, 4)}
    assert adapted_layers(config, renamed, spec) is None
    with pytest.raises(UserError, match="'wqkv' names no linear layer"):
        adapted_layers(config, renamed, resolve_family("qwen3_vl"))
    with pytest.raises(UserError, match="'wqkv' names no linear layer"):
        add_adapters(make_tiny(GENERIC)[0], spec, settings("wqkv"))


def test_experts_router_head_and_tables_are_no_linear_layers() -> None:
    shapes = {
        "model.language_model.layers.0.mlp.gate.weight": (4, 8),
        "model.language_model.layers.0.mlp.experts.1.up_proj.weight": (4, 8),
        "model.language_model.layers.0.mlp.experts.gate_up_proj": (4, 8, 16),
        "model.language_model.embed_tokens.weight": (4, 8),
        "model.visual.pos_embed.weight": (4, 8),
        "lm_head.weight": (4, 8),
        "model.language_model.layers.0.mlp.gate_proj.weight": (4, 8),
    }
    assert stored_linears(shapes, resolve_family("qwen3_vl_moe")) == [
        LinearLayer(path="model.language_model.layers.0.mlp.gate_proj", part="language_model", inputs=8, outputs=4)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_first_values_come_from_the_seed_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    make_tiny("qwen2_vl")[0].save_pretrained(tmp_path)

    def build(seed: int, *, on_meta: bool = False) -> VisionLanguageModel:
        return build_model(
            tmp_path, resolve_family("qwen2_vl"), dtype=dtype, attention="sdpa", on_meta=on_meta,
            lora=settings(*EVERYWHERE, seed=seed),
        )  # fmt: skip

    first = adapters(build(5))
    torch.rand(7)
    again, other, meta = adapters(build(5)), adapters(build(6)), adapters(build(5, on_meta=True))
    assert first.keys() == again.keys() == meta.keys()
    for name, tensor in first.items():
        assert tensor.dtype == dtype and torch.equal(tensor, again[name])
        assert meta[name].is_meta and (meta[name].dtype, meta[name].shape) == (dtype, tensor.shape)
        if ".lora_B." in name:
            assert not tensor.any()
            continue
        # kaiming_uniform(a=sqrt(5)), peft's choice: uniform in +-1/sqrt(inputs)
        bound = tensor.shape[1] ** -0.5
        assert 0.5 * bound < float(tensor.abs().max()) <= bound * 1.01
        assert not torch.equal(tensor, other[name])


def test_adding_adapters_draws_nothing_from_the_process() -> None:
    hf, _ = make_tiny("qwen2_vl")
    before = torch.get_rng_state()
    add_adapters(hf, resolve_family("qwen2_vl"), settings(dropout=0.1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_the_folder_and_gives_the_same_scores(family: str, tmp_path: Path) -> None:
    model, hf = with_adapters(family, *EVERYWHERE)
    hf.save_pretrained(tmp_path / "base")
    frozen_before = {n: p.detach().clone() for n, p in model.named_parameters() if not is_adapter(n)}
    losses = train_a_little(model, family)
    assert losses[-1] < losses[0] - 0.1
    parameters = dict(model.named_parameters())
    assert all(torch.equal(before, parameters[name]) for name, before in frozen_before.items())
    save(model, tmp_path / "base", tmp_path / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="sdpa"
    )
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    batch = pack(mixed_rows(family), family=family)
    with torch.no_grad():
        scores = model(batch).logprobs
        theirs = torch.cat([alone(loaded, row, family=family)[0] for row in mixed_rows(family)])
        plain = wrap_model(copy.deepcopy(hf), spec_of(family), attention="sdpa")(batch).logprobs
    torch.testing.assert_close(theirs, scores, rtol=0, atol=1e-5)
    assert float((scores - plain).abs().max()) > 0.05
    merged = wrap_model(loaded.merge_and_unload(), spec_of(family), attention="sdpa")
    with torch.no_grad():
        torch.testing.assert_close(merged(batch).logprobs, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_a_plain_peft_model(family: str) -> None:
    """peft by itself: its own injection, its own first values; only the scores' function is ours."""
    hf, _ = make_tiny(family, seed=1)
    spec = spec_of(family)
    theirs = copy.deepcopy(hf)
    paths = [layer.path for layer in linear_layers(theirs, spec)]
    wrapped = get_peft_model(theirs, LoraConfig(r=4, lora_alpha=8, target_modules=paths))
    add_adapters(hf, spec, settings(*EVERYWHERE))
    model = wrap_model(hf, spec, attention="sdpa", passes=ModelPasses(checkpointed=1.0))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.base_model.model.named_parameters():
        if is_adapter(name):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
            hf.get_parameter(name).data = parameter.data.clone()
    plain = wrap_model(theirs, spec, attention="sdpa")
    batch = pack(mixed_rows(family), family=family)
    for module in (model, plain):
        module(batch).logprobs.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    reached = {name for name, gradient in wanted.items() if gradient is not None}
    # Llava's tower has a layer after the one whose output is taken.
    assert len(found) - len(reached) == (12 if family == GENERIC else 0)
    for name in reached:
        # With two decoder layers the second deepstack feature comes after all attention, at tokens without labels.
        assert float(wanted[name].abs().max()) > 0 or "deepstack_merger_list.1." in name, name
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert all(p.grad is None for n, p in model.named_parameters() if not is_adapter(n))


def test_recomputation_drops_the_same_inputs() -> None:
    results = []
    for checkpointing in (False, True):
        model, _ = with_adapters("qwen2.5_vl", *EVERYWHERE, dropout=0.5)
        generator = torch.Generator().manual_seed(0)
        for name, tensor in adapters(model).items():
            if ".lora_B." in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        model.set_gradient_checkpointing(checkpointing)
        torch.manual_seed(11)
        scores = model(pack(mixed_rows("qwen2.5_vl"), family="qwen2.5_vl"))
        scores.logprobs.sum().backward()
        results.append((scores.logprobs.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-6)
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-5, atol=1e-6)
    model.eval()
    batch = pack(mixed_rows("qwen2.5_vl"), family="qwen2.5_vl")
    with torch.no_grad():
        assert torch.equal(model(batch).logprobs, model(batch).logprobs)
        model.train()
        assert not torch.equal(model(batch).logprobs, model(batch).logprobs)


def test_a_frozen_tower_runs_without_gradients() -> None:
    model, _ = with_adapters("qwen2.5_vl")
    recorded: list[bool] = []
    model.hf.model.visual.merger.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    model(pack(mixed_rows("qwen2.5_vl"), family="qwen2.5_vl")).logprobs.sum().backward()
    assert recorded == [False]


def test_the_written_folder(tmp_path: Path) -> None:
    model, hf = with_adapters("qwen2.5_vl", "q_proj")
    hf.save_pretrained(tmp_path / "base")
    save(model, tmp_path / "base", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"model.language_model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    known = set(LoraConfig().to_dict())
    assert config.keys() <= known | {"base_model_name_or_path"}
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sorted(weights) == [
        f"base_model.model.model.language_model.layers.{i}.self_attn.q_proj.lora_{which}.weight"
        for i in (0, 1)
        for which in "AB"
    ]
    modes = {path.stat().st_mode for path in (tmp_path / "adapter").iterdir()}
    assert len(modes) == 1, "the weights are as readable as the rest"


def test_a_full_disk_is_an_error_that_is_told_as_one(tmp_path: Path) -> None:
    """safetensors' own error is no OSError, which is what checkpoints and the converter tell in one line."""
    (tmp_path / ADAPTER_FILE).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_peft_files(tmp_path, {"a": torch.zeros(9)}, {})


def test_a_folder_that_peft_would_fill_with_first_values_is_not_written(tmp_path: Path) -> None:
    model, _ = with_adapters("qwen2.5_vl", "q_proj")
    weights = adapters(model)
    targets = [layer.path for layer in adapted_modules(model.hf, model.spec)]
    config = adapter_config(model_path=tmp_path, rank=4, alpha=8, dropout=0.0, targets=targets)
    with pytest.raises(ValueError, match="do not fit"):
        write_adapter(tmp_path / "adapter", dict(list(weights.items())[1:]), config)
    with pytest.raises(ValueError, match=r"no adapters \['lm_head.weight'\]"):
        write_adapter(tmp_path / "adapter", {**weights, "lm_head.weight": torch.zeros(1)}, config)
    assert not (tmp_path / "adapter").exists()
