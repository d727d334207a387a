"""LoRA checkpoints: merged into the base as peft merges them, or written as a folder that peft loads."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlinf_vlm.checkpoints import adapter_folder, dcp_folder
from rlinf_vlm.types import UserError
from tests.convert_inputs import (
    assert_equal,
    convert,
    lora_config,
    lora_weights,
    stored,
    trained,
    write_adapter,
    write_base,
    write_step,
    written,
)
from tests.tiny_models import GENERIC
from toolkits.ckpt_convertor.fsdp_convertor.adapter import MergedSource
from toolkits.ckpt_convertor.fsdp_convertor.conversion import open_base
from toolkits.ckpt_convertor.fsdp_convertor.locate import open_weights_of
from toolkits.ckpt_convertor.fsdp_convertor.matching import match
from toolkits.ckpt_convertor.fsdp_convertor.settings import BaseModelConfig
from toolkits.ckpt_convertor.fsdp_convertor.verify import VerificationFailed, Verifier

LANGUAGE = "q_proj v_proj o_proj down_proj"
WHERE = {
    "step": lambda step: step,
    "actor": lambda step: step / "actor",
    "dcp": dcp_folder,
    "adapter": adapter_folder,
    "the adapter's file": lambda step: adapter_folder(step) / "adapter_model.safetensors",
}


@pytest.fixture
def made(tmp_path):
    """(base folder, its weights, the checkpoint folder, its adapter) of Qwen2.5-VL."""
    weights = write_base(tmp_path / "base", "qwen2.5_vl", tied=True)
    adapter = lora_weights(weights, LANGUAGE + " qkv")
    step = write_step(tmp_path / "run" / "global_step_3", adapter, adapter_config=lora_config(adapter))
    return tmp_path / "base", weights, step, adapter


def merged(weights, adapter, scale=2.0):
    """W + s B A, written down anew."""
    found = dict(weights)
    for name in weights:
        module = name.removesuffix(".weight")
        if f"{module}.lora_A.default.weight" in adapter:
            a, b = (adapter[f"{module}.lora_{side}.default.weight"] for side in "AB")
            found[name] = weights[name] + scale * (b @ a)
    return found


@pytest.mark.parametrize("where", WHERE)
def test_merged_from_every_source(where, made, tmp_path):
    base, weights, step, adapter = made
    assert len(adapter) == 2 * 2 * (4 + 2), "two layers with four, two vision blocks with two"
    report = convert(WHERE[where](step), base, tmp_path / "out")
    wanted = stored("qwen2.5_vl", merged(weights, adapter))
    found = written(tmp_path / "out")
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    assert report.checks is not None and len(report.checks) == 2
    assert all(check.difference <= check.tolerance < 1e-2 for check in report.checks)
    assert not torch.allclose(
        found["model.layers.0.self_attn.q_proj.weight"],
        stored("qwen2.5_vl", weights)["model.layers.0.self_attn.q_proj.weight"],
    )


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe", GENERIC])
def test_merged_like_peft_merges(family, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    adapter = lora_weights(write_base(tmp_path / "base", family), "q_proj v_proj o_proj fc1 linear_1")
    write_adapter(tmp_path / "adapter", adapter, lora_config(adapter))
    report = convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert report.checks is not None
    load = AutoModelForImageTextToText.from_pretrained
    peft = PeftModel.from_pretrained(load(tmp_path / "base", dtype=torch.float32), tmp_path / "adapter")
    wanted = peft.merge_and_unload().state_dict()
    found = load(tmp_path / "out", dtype=torch.float32).state_dict()
    assert sorted(found) == sorted(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6)


def test_merging_is_done_in_float32_and_rounded_once(tmp_path):
    weights = write_base(tmp_path / "base", "qwen3_vl", dtype=torch.bfloat16)
    adapter = lora_weights(weights, LANGUAGE)
    write_adapter(tmp_path / "adapter", adapter, lora_config(adapter))
    report = convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out", torch_dtype="bf16")
    wanted = {name: tensor.bfloat16() for name, tensor in merged(weights, adapter).items()}
    found = written(tmp_path / "out")
    differing = sum(int((found[name] != tensor).sum()) for name, tensor in wanted.items())
    assert differing <= 3, "but for values in the middle between two of bfloat16"
    assert report.checks is not None and report.dtype == "bfloat16"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_a_type_the_bases_is_kept(tmp_path):
    adapter = lora_weights(write_base(tmp_path / "base", "qwen3_vl", dtype=torch.bfloat16), LANGUAGE)
    write_adapter(tmp_path / "adapter", adapter, lora_config(adapter))
    convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out", torch_dtype=None)
    assert {tensor.dtype for tensor in written(tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("more", "scale"),
    [({"use_rslora": True}, 8 / math.sqrt(4)), ({"lora_alpha": 20}, 5.0), ({"alpha_pattern": {"q_proj": 12}}, None)],
)
def test_scale(more, scale, tmp_path):
    weights = write_base(tmp_path / "base", "qwen3_vl")
    adapter = lora_weights(weights, "q_proj v_proj")
    write_adapter(tmp_path / "adapter", adapter, lora_config(adapter) | more)
    report = convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert report.checks is not None, "peft's own scale is the reference"
    name = "model.language_model.layers.1.self_attn.{}_proj.weight"
    for kind in "qv":
        wanted = merged(weights, adapter, scale or {"q": 3.0, "v": 2.0}[kind])[name.format(kind)]
        torch.testing.assert_close(written(tmp_path / "out")[name.format(kind)], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", WHERE)
def test_the_adapter_alone(where, made, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base, weights, step, adapter = made
    out = tmp_path / "out"
    report = convert(WHERE[where](step), base, out, merge_lora_weights=False)
    assert report.checks is not None and report.tensors == len(adapter) and "adapter" in report.what
    assert_equal(
        load_file(out / "adapter_model.safetensors"), load_file(adapter_folder(step) / "adapter_model.safetensors")
    )
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base) and config["r"] == 4
    assert not (out / "config.json").exists() and not (out / "model.safetensors").exists()
    AutoProcessor.from_pretrained(out)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), out)
    found = model.merge_and_unload().state_dict()
    for name, tensor in merged(weights, adapter).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_a_wrong_sum_is_noticed(made, tmp_path):
    """The verification compares with peft, which knows nothing of how we add."""
    base, _, step, _ = made
    convert(step, base, tmp_path / "out")
    opened = open_base(BaseModelConfig(model_path=str(base)))
    adapter = open_weights_of(str(step)).adapter
    other = replace(adapter, config={**adapter.config, "lora_alpha": 8.05})
    source = MergedSource(opened.stored, other, opened.naming, opened.units)
    plan = match(opened.naming, opened.units, opened.stored, source, torch.float32)
    verifier = Verifier(
        base=base,
        folder=tmp_path / "out",
        config=opened.config,
        naming=opened.naming,
        compute=torch.float32,
        trust_remote_code=False,
    )
    with pytest.raises(VerificationFailed, match="merged in float32.*more than the tolerance"):
        verifier.merged_adapter(plan, adapter)
    with pytest.raises(VerificationFailed, match="the folder, the checkpoint's tensors.*more than the tolerance"):
        verifier.whole_model(plan)


def _without(adapter, ending):
    return {name: tensor for name, tensor in adapter.items() if not name.endswith(ending)}


MISTAKES = {
    "half a pair": (
        lambda a: _without(a, "layers.1.self_attn.q_proj.lora_B.default.weight"),
        {},
        "only one of A and B",
    ),
    "no tensors for a target": (
        lambda a: {name: tensor for name, tensor in a.items() if "layers.1.self_attn.q_proj" not in name},
        {},
        "no tensors for model.language_model.layers.1.self_attn.q_proj",
    ),
    "another rank": (lambda a: a, {"r": 8}, "no pair of rank 8"),
    "dora": (lambda a: a, {"use_dora": True}, "use_dora=True"),
    "another kind": (lambda a: a, {"peft_type": "LOHA"}, "peft_type='LOHA'"),
    "whole modules": (lambda a: a, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "something beside": (lambda a: {**a, "model.language_model.norm.weight": torch.ones(32)}, {}, "norm.weight beside"),
    "no alpha": (lambda a: a, {"lora_alpha": None}, "describes no LoRA adapter"),
}


@pytest.mark.parametrize(("change", "config", "message"), MISTAKES.values(), ids=MISTAKES)
def test_an_adapter_that_cannot_be_used(change, config, message, tmp_path):
    adapter = lora_weights(write_base(tmp_path / "base", "qwen2.5_vl"), "q_proj")
    write_adapter(tmp_path / "adapter", change(adapter), lora_config(adapter) | config)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_the_adapter_of_another_model(tmp_path):
    write_base(tmp_path / "base", "qwen2.5_vl")
    other = lora_weights(trained(write_base(tmp_path / "other", GENERIC)), "q_proj")
    write_adapter(tmp_path / "adapter", other, lora_config(other))
    with pytest.raises(UserError, match="vision_tower.*no single stored tensor.*set model.model_path"):
        convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    wide = {
        name: torch.zeros(4, 64) if ".lora_A." in name else tensor
        for name, tensor in lora_weights(written_as_new(tmp_path), "q_proj").items()
    }
    write_adapter(tmp_path / "wide", wide, lora_config(wide))
    with pytest.raises(UserError, match=r"is \[32, 64\], but .* is \[32, 32\]"):
        convert(tmp_path / "wide", tmp_path / "base", tmp_path / "out")


def written_as_new(tmp_path):
    return write_base(tmp_path / "new", "qwen2.5_vl")


def test_sharded_files_without_the_description(made, tmp_path):
    base, _, step, _ = made
    shutil.copytree(dcp_folder(step), tmp_path / "alone" / "dcp_checkpoint")
    with pytest.raises(UserError, match=r"holds a LoRA adapter, and .*adapter_config.json.* is not there"):
        convert(tmp_path / "alone" / "dcp_checkpoint", base, tmp_path / "out")


def test_an_adapter_on_a_tied_head(tmp_path):
    weights = write_base(tmp_path / "base", "qwen2.5_vl", tied=True)
    head = {"lm_head.weight": weights["model.language_model.embed_tokens.weight"]}
    adapter = lora_weights(head, "lm_head")
    write_adapter(tmp_path / "adapter", adapter, lora_config(adapter))
    with pytest.raises(UserError, match=r"lm_head\.weight"):
        convert(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
