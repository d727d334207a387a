"""A model's weights as its folder has them, of every family, from what is in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlinf_vlm.models.exporting import open_engine_weights
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.types import UserError
from tests.tiny_models import GENERIC, QWEN_FAMILIES, make_tiny


def family_name(family: str) -> str:
    return "auto" if family == GENERIC else family


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("family", [*QWEN_FAMILIES, GENERIC])
def test_the_folder_s_tensors_come_back(family, tied, tmp_path):
    hf, _ = make_tiny(family, tied=tied)
    hf.save_pretrained(tmp_path)
    weights = open_engine_weights(tmp_path, resolve_family(family_name(family)))
    stored = load_file(tmp_path / "model.safetensors")
    state = hf.state_dict()
    found: dict[str, torch.Tensor] = {}
    for unit in weights.units:
        made = weights.to_folder(unit, {name: state[name] for name in unit.memory})
        for spec in weights.specs(unit, torch.float32):
            assert made[spec.name].shape == spec.shape and spec.dtype == "float32"
            assert spec.name not in found
            found[spec.name] = made[spec.name]
    assert found.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())


def test_a_tied_weight_that_a_folder_holds_twice_is_sent_once(tmp_path):
    hf, _ = make_tiny("qwen2.5_vl", tied=True)
    hf.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    (embedding,) = [name for name in stored if name.endswith("embed_tokens.weight")]
    save_file({**stored, "lm_head.weight": stored[embedding].clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    weights = open_engine_weights(tmp_path, resolve_family("qwen2.5_vl"))
    sent = [name for unit in weights.units for name in unit.disk]
    assert sorted(sent) == sorted(stored) and embedding in sent


def test_what_changes_is_whole_blocks(tmp_path):
    hf, _ = make_tiny("qwen3_vl")
    hf.save_pretrained(tmp_path)
    weights = open_engine_weights(tmp_path, resolve_family("qwen3_vl"))
    one = "model.language_model.layers.1.self_attn.q_proj.lora_A.default.weight"
    block = [name for unit in weights.changed([one]) for name in unit.memory]
    assert block and set(block) == {
        name for name in hf.state_dict() if name.startswith("model.language_model.layers.1.")
    }
    assert [unit.memory for unit in weights.changed(["lm_head.weight"])] == [("lm_head.weight",)]
    assert weights.changed([]) == ()


def test_a_folder_without_safetensors_cannot_be_pushed(tmp_path):
    hf, config = make_tiny("qwen2_vl")
    config.save_pretrained(tmp_path)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors files"):
        open_engine_weights(tmp_path, resolve_family("qwen2_vl"))
