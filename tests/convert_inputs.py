"""Base folders of every family with a processor, and checkpoints as training leaves them, for tests of the converter.

Weights are random and small; a checkpoint's are the base's with something added. Names on disk are transformers' new
ones or those of the folders on the hub (``OLD``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from rlinf_vlm.checkpoints import MARK, adapter_folder, dcp_folder, full_weights_file, list_files, state_file
from tests.tiny_models import GENERIC, MERGE, PATCH, tiny_config
from toolkits.ckpt_convertor.fsdp_convertor.conversion import Report
from toolkits.ckpt_convertor.fsdp_convertor.conversion import convert as run
from toolkits.ckpt_convertor.fsdp_convertor.settings import Settings

OLD: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen2_vl": (("model.visual.", "visual."), ("model.language_model.", "model.")),
    "qwen2.5_vl": (("model.visual.", "visual."), ("model.language_model.", "model.")),
    GENERIC: (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
}
"""Family -> beginnings of names in memory and in the folders on the hub."""
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
"""What Qwen3-VL-MoE's folders store with inputs before outputs."""


def old_name(family: str, name: str) -> str:
    """A parameter's name in a folder on the hub."""
    return next((old + name.removeprefix(new) for new, old in OLD.get(family, ()) if name.startswith(new)), name)


def stored(family: str, weights: Mapping[str, torch.Tensor], *, old: bool = True) -> dict[str, torch.Tensor]:
    """Parameters as a folder stores them: with the hub's names if ``old``, experts transposed."""
    return {
        old_name(family, name) if old else name: tensor.transpose(1, 2).contiguous()
        if name.endswith(EXPERTS)
        else tensor
        for name, tensor in weights.items()
    }


def write_base(
    folder: Path,
    family: str,
    *,
    tied: bool = False,
    old: bool = True,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    lm_head: bool | None = None,
    text_config: Any = None,
) -> dict[str, torch.Tensor]:
    """Writes a folder as the hub has them; returns the parameters by name in memory, float32, tied ones once.

    lm_head: whether the head is stored although it is tied; None stores it when it is not tied. text_config: of the
    generic family, instead of Llama's.
    """
    from transformers import AutoModelForImageTextToText

    processor = tiny_processor(family)
    config = _config(family, processor.tokenizer, tied)
    if text_config is not None:
        config.text_config = text_config(config.text_config)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.08).to(dtype))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    on_disk = stored(family, weights, old=old)
    if lm_head is True:
        on_disk[old_name(family, "lm_head.weight") if old else "lm_head.weight"] = (
            model.get_output_embeddings().weight.detach().clone()
        )
    processor.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
    config.save_pretrained(folder)
    write_weights(folder, {name: tensor.to(dtype) for name, tensor in on_disk.items()}, shards)
    return weights


def write_weights(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """One safetensors file, or several with an index."""
    names = sorted(tensors)
    if shards == 1:
        save_file({name: tensors[name].clone() for name in names}, folder / "model.safetensors", {"format": "pt"})
        return
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        save_file({name: tensors[name].clone() for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def moe_text(text: Any) -> Any:
    """A language model with the vocabulary of ``text`` and experts, which transformers joins when it loads them."""
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=text.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=[], tie_word_embeddings=False,
    )  # fmt: skip


def one_by_one(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters of a model with ``moe_text``, the experts as a folder stores them: each its own tensors."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        path, _, kind = name.rpartition(".experts.")
        for expert in range(4) if path else ():
            if kind == "gate_up_proj":
                made[f"{path}.experts.{expert}.gate_proj.weight"] = tensor[expert, :24].clone()
                made[f"{path}.experts.{expert}.up_proj.weight"] = tensor[expert, 24:].clone()
            else:
                made[f"{path}.experts.{expert}.down_proj.weight"] = tensor[expert].clone()
        if not path:
            made[name] = tensor
    return made


def trained(weights: Mapping[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """The weights after something that changed all of them."""
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + torch.randn(tensor.shape, generator=generator) * 0.03 for name, tensor in weights.items()}


def write_step(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    *,
    adapter_config: Mapping[str, Any] | None = None,
    full_weights: bool = True,
) -> Path:
    """A finished ``global_step_N`` folder with sharded files and, of a whole model, the one file; returns it."""
    full_weights_file(folder).parent.mkdir(parents=True)
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    moments = {f"optimizer.{name}.exp_avg": torch.zeros_like(tensor) for name, tensor in weights.items()}
    dcp.save(
        {**state, **moments, "scheduler.finished_steps": torch.tensor(3)},
        checkpoint_id=dcp_folder(folder),
        no_dist=True,
    )
    if adapter_config is not None:
        write_adapter(adapter_folder(folder), weights, adapter_config)
    elif full_weights:
        torch.save(dict(weights), full_weights_file(folder))
    state_file(folder).write_text(json.dumps({"step": 3, "samples": 12, "saved_at": time.time()}))
    mark(folder)
    return folder


def mark(folder: Path) -> None:
    """Makes a checkpoint folder a finished one, whatever is in it."""
    (folder / MARK).write_text(json.dumps({"files": list_files(folder)}))


def lora_weights(weights: Mapping[str, torch.Tensor], ending: str, rank: int = 4) -> dict[str, torch.Tensor]:
    """Adapters, by their names in a live model, for every linear layer whose path ends in one of ``ending``'s words."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and tensor.ndim == 2 and module.rpartition(".")[2] in ending.split():
            made[f"{module}.lora_A.default.weight"] = torch.randn(rank, tensor.shape[1], generator=generator) * 0.2
            made[f"{module}.lora_B.default.weight"] = torch.randn(tensor.shape[0], rank, generator=generator) * 0.2
    return made


def lora_config(adapter: Mapping[str, torch.Tensor], rank: int = 4, alpha: int = 8, **more: Any) -> dict[str, Any]:
    """adapter_config.json of ``lora_weights``."""
    targets = sorted({name.partition(".lora_")[0] for name in adapter})
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": "/somewhere/else",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        **more,
    }


def write_adapter(folder: Path, adapter: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """A peft folder of ``lora_weights``."""
    folder.mkdir(parents=True)
    named = {f"base_model.model.{name.replace('.default.', '.')}": tensor for name, tensor in adapter.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def convert(ckpt: Path, base: Path, out: Path, **more: Any) -> Report:
    """One conversion, by default to fp32; ``more``: fields of ``convertor``, and model_type."""
    model = {"model_path": str(base), "model_type": more.pop("model_type", None)}
    convertor = {"ckpt_path": str(ckpt), "save_path": str(out), "torch_dtype": "fp32", **more}
    return run(Settings.model_validate({"convertor": convertor, "model": model}), lambda line: None)


def written(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same names and bits."""
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def _config(family: str, tokenizer: Any, tied: bool) -> Any:
    config = tiny_config(family, tied=tied)
    ids = tokenizer.get_vocab()
    config.text_config.vocab_size = len(tokenizer)
    for name, token in {
        "image_token_id": "<|image_pad|>",
        "image_token_index": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, ids[token])
    return config


def tiny_processor(family: str) -> Any:
    import transformers

    from toolkits.data.demo_model import CHAT_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer(["What is in the picture?"] * 9, 300)
    if family == GENERIC:
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        return transformers.LlavaProcessor(
            image_processor=images, tokenizer=tokenizer, patch_size=PATCH, chat_template=CHAT_TEMPLATE,
            vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<|image_pad|>",
        )  # fmt: skip
    kind, video = {
        "qwen2_vl": (transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen2.5_vl": (transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor),
    }.get(family, (transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor))
    size = {"shortest_edge": 32**2, "longest_edge": 48**2}
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(size=dict(size), **patches),
        tokenizer=tokenizer,
        video_processor=video(size=dict(size), **patches),
        chat_template=CHAT_TEMPLATE,
    )
