"""Building from a folder, the meta device, names, ties, freezing, families."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlinf_vlm.models.families import FAMILIES, family_for, resolve_family
from rlinf_vlm.models.loading import blocks_in_order, build_model, freeze, wrap_model
from rlinf_vlm.models.parts import part_of
from rlinf_vlm.types import UserError
from tests.packing_by_hand import mixed_rows, pack
from tests.tiny_models import GENERIC, QWEN_FAMILIES, make_tiny


def test_families_are_readable_without_torch() -> None:
    code = (
        "import sys, rlinf_vlm.models.families as f; "
        "specs = [f.resolve_family(name) for name in f.FAMILIES]; assert len(specs) == 6; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_resolving_families() -> None:
    assert resolve_family("qwen2_5_vl") is resolve_family("qwen2.5_vl")
    assert resolve_family("rlinf_vlm.models.families:AUTO").name == "auto"
    assert [family_for(name) for name in ("qwen2_5_vl", "qwen3_vl_moe", "llava")] == [
        "qwen2.5_vl",
        "qwen3_vl_moe",
        "auto",
    ]
    with pytest.raises(ValueError, match="did you mean 'qwen3_vl'"):
        resolve_family("qwen3vl")
    with pytest.raises(ValueError, match="is a dict, not a FamilySpec"):
        resolve_family("rlinf_vlm.models.families:FAMILIES")
    assert set(FAMILIES) == {"qwen2_vl", "qwen2.5_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "auto"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [*QWEN_FAMILIES, GENERIC])
def test_a_saved_model_comes_back(family: str, tied: bool, tmp_path: Path) -> None:
    hf, _ = make_tiny(family, seed=2, tied=tied)
    hf.save_pretrained(tmp_path)
    spec = resolve_family("auto" if family == GENERIC else family)
    model = build_model(tmp_path, spec, dtype=torch.float32, attention="sdpa")
    batch = pack(mixed_rows(family), family=family)
    wanted = wrap_model(hf, spec, attention="sdpa")
    with torch.no_grad():
        assert torch.equal(model(batch).logprobs, wanted(batch).logprobs)
    names = [model.hf_state_name(name) for name in model.state_dict()]
    assert names == list(hf.state_dict())
    assert [model.state_name(name) for name in names] == list(model.state_dict())
    embedding = "model.language_model.embed_tokens.weight"
    assert model.tied_names() == ({"lm_head.weight": embedding} if tied else {})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", [*QWEN_FAMILIES, GENERIC])
def test_meta_model_has_the_same_names_and_real_buffers(family: str, tied: bool, tmp_path: Path) -> None:
    hf, _ = make_tiny(family, tied=tied)
    hf.save_pretrained(tmp_path)
    spec = resolve_family("auto" if family == GENERIC else family)
    full = build_model(tmp_path, spec, dtype=torch.bfloat16, attention="sdpa")
    empty = build_model(tmp_path, spec, dtype=torch.bfloat16, attention="sdpa", on_meta=True)
    real, meta = dict(full.named_parameters()), dict(empty.named_parameters())
    assert list(real) == list(meta)
    for name, parameter in meta.items():
        assert parameter.is_meta and not real[name].is_meta
        assert (parameter.shape, parameter.dtype) == (real[name].shape, real[name].dtype)
        assert parameter.requires_grad
    assert empty.tied_names() == full.tied_names()
    assert list(empty.state_dict()) == list(full.state_dict())
    buffers = dict(full.named_buffers())
    for name, buffer in empty.named_buffers():
        assert torch.equal(buffer, buffers[name]) and buffer.dtype in (torch.float32, torch.int64)
    assert len(buffers) >= 2
    # What the other ranks do: storage for the parameters, then the first rank's values.
    for parameter in meta.values():
        assert parameter.device.type == "meta"
    empty.load_state_dict(full.state_dict(), assign=True)
    batch = pack(mixed_rows(family), family=family)
    with torch.no_grad():
        assert torch.equal(empty(batch).logprobs, full(batch).logprobs)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    hf, _ = make_tiny("qwen2.5_vl")
    hf.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"set model_type: qwen2\.5_vl"):
        build_model(tmp_path, resolve_family("qwen3_vl"), dtype=torch.float32, attention="sdpa")
    with pytest.raises(UserError, match="has no 3-D positions"):
        build_model(tmp_path, resolve_family("auto"), dtype=torch.float32, attention="sdpa")
    with pytest.raises(UserError, match=r"no config\.json there"):
        build_model(tmp_path / "nothing", resolve_family("qwen3_vl"), dtype=torch.float32, attention="sdpa")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    hf, _ = make_tiny("qwen2.5_vl")
    hf.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights[name.replace("layers.1", "layers.7")] = weights[name].clone()
    else:
        weights[name] = weights[name][:-1].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        build_model(tmp_path, resolve_family("qwen2.5_vl"), dtype=torch.float32, attention="sdpa")
    text = str(caught.value)
    assert "\n" not in text
    if change != "shape":
        assert change in text and "mlp.up_proj.weight" in text


@pytest.mark.parametrize("family", [*QWEN_FAMILIES, GENERIC])
def test_freezing_follows_the_parts(family: str) -> None:
    hf, _ = make_tiny(family)
    spec = resolve_family("auto" if family == GENERIC else family)
    model = wrap_model(hf, spec, attention="sdpa")
    parts = {name: part_of(name, spec) for name in (model.hf_state_name(n) for n, _ in model.named_parameters())}
    assert set(parts.values()) == {"vision_tower", "merger", "language_model"}
    assert parts["lm_head.weight"] == "language_model"
    if family.startswith("qwen3"):
        assert parts["model.visual.deepstack_merger_list.0.linear_fc1.weight"] == "merger"
    trained = freeze(model, spec, vision_tower=True, language_model=True)
    left = {model.hf_state_name(n): p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert set(left) == {name for name, part in parts.items() if part == "merger"}
    assert trained == sum(left.values()) > 0
    with pytest.raises(UserError, match="every parameter is frozen"):
        freeze(model, spec, merger=True)


def test_freezing_a_part_that_is_not_there_is_refused() -> None:
    hf, _ = make_tiny("qwen2_vl")
    model = wrap_model(hf, resolve_family("qwen2_vl"), attention="sdpa")
    with pytest.raises(UserError, match=r"freeze vision_tower: .* lm_head.weight, model.language_model, model.visual"):
        freeze(model, replace(resolve_family("qwen2_vl"), vision_prefixes=("model.eyes.",)), vision_tower=True)


def test_blocks_in_running_order() -> None:
    model = wrap_model(make_tiny("qwen2.5_vl")[0], resolve_family("qwen2.5_vl"), attention="sdpa")
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(block)] for block in blocks_in_order(model)] == [
        "hf.model.visual.blocks.0",
        "hf.model.visual.blocks.1",
        "hf.model.language_model.layers.0",
        "hf.model.language_model.layers.1",
    ]
    generic = wrap_model(make_tiny(GENERIC)[0], resolve_family("auto"), attention="sdpa")
    kinds = [type(block).__name__ for block in blocks_in_order(generic)]
    assert kinds == ["CLIPEncoderLayer"] * 3 + ["LlamaDecoderLayer"] * 2
