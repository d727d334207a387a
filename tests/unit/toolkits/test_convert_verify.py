"""What the verification computes in, and what it notices."""

from __future__ import annotations

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlinf_vlm.types import UserError
from tests.convert_inputs import convert, trained, write_base
from tests.tiny_models import GENERIC
from toolkits.ckpt_convertor.fsdp_convertor.conversion import open_base
from toolkits.ckpt_convertor.fsdp_convertor.matching import match
from toolkits.ckpt_convertor.fsdp_convertor.settings import BaseModelConfig
from toolkits.ckpt_convertor.fsdp_convertor.tensors import TorchFile
from toolkits.ckpt_convertor.fsdp_convertor.verify import VerificationFailed, Verifier, compute_type, image_prompt


def made(tmp_path, family, dtype):
    """(verifier of a converted folder, the plan that it was made by)."""
    torch.save(trained(write_base(tmp_path / "base", family)), tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "base", tmp_path / "out", torch_dtype=dtype, verify=False)
    base = open_base(BaseModelConfig(model_path=str(tmp_path / "base")))
    written = getattr(torch, dtype)
    plan = match(base.naming, base.units, base.stored, TorchFile(tmp_path / "w.pt"), written)
    verifier = Verifier(
        base=base.path,
        folder=tmp_path / "out",
        config=base.config,
        naming=base.naming,
        compute=written,
        trust_remote_code=False,
    )
    return verifier, plan


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["qwen2.5_vl", "qwen3_vl_moe", GENERIC])
def test_every_type_computes(family, dtype, tmp_path):
    verifier, plan = made(tmp_path, family, dtype)
    [check] = verifier.whole_model(plan)
    assert check.difference <= check.tolerance < 0.2 and check.compute is getattr(torch, dtype)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2.5_vl", "model.layers.1.input_layernorm.weight"),
        ("qwen2.5_vl", "visual.blocks.0.norm1.weight"),
        ("qwen3_vl_moe", "model.language_model.layers.0.mlp.experts.down_proj"),
        ("qwen3_vl_moe", "model.visual.deepstack_merger_list.1.linear_fc2.bias"),
        (GENERIC, "multi_modal_projector.linear_1.bias"),
    ],
)
def test_one_tensor_in_another_order_is_noticed(family, name, tmp_path):
    verifier, plan = made(tmp_path, family, "float32")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(VerificationFailed, match="differ by .*, more than the tolerance"):
        verifier.whole_model(plan)


def test_another_processor_is_noticed(tmp_path):
    made(tmp_path, "qwen2.5_vl", "float32")
    file = tmp_path / "out" / "processor_config.json"
    file.write_text(file.read_text().replace("2304", "1600"))
    assert image_prompt(tmp_path / "out", trust_remote_code=False)
    base = open_base(BaseModelConfig(model_path=str(tmp_path / "base")))
    with pytest.raises(VerificationFailed, match="makes another prompt"):
        Verifier(
            base=base.path,
            folder=tmp_path / "out",
            config=base.config,
            naming=base.naming,
            compute=torch.float32,
            trust_remote_code=False,
        )


def test_the_type_that_fits_is_taken():
    free = psutil.virtual_memory().available
    assert compute_type(1000, written=torch.bfloat16, lora=False) is torch.float32
    assert compute_type(free // 4, written=torch.bfloat16, lora=False) is torch.bfloat16
    with pytest.raises(UserError, match="GiB are free; convert on a larger machine or set convertor.verify=false"):
        compute_type(free, written=torch.bfloat16, lora=False)
    for written, lora in ((torch.float32, False), (torch.bfloat16, True), (None, False)):
        with pytest.raises(UserError, match="convertor.verify=true"):
            compute_type(free // 4, written=written, lora=lora)
