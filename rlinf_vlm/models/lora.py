"""Low-rank adapters (LoRA) by peft: put into a transformers model, named, and written as a peft adapter folder.

Dataflow: transformers model + ``LoraSettings`` -> the same model, whose chosen linear layers are peft's, everything but
the adapters frozen -> training -> {name: tensor} -> ``write_adapter`` -> a folder for ``PeftModel.from_pretrained``.
Invariants: with fresh adapters the model computes what it did (B is zero); A is drawn from the seed alone, whatever was
drawn before; adapters have the dtype of the layer beside them; a model on the meta device gets adapters there.
Not here: which layers there are and which are chosen (parts.py), merging (toolkits), quantised bases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from rlinf_vlm.models.families import FamilySpec
from rlinf_vlm.models.parts import LinearLayer, choose_linears, part_of
from rlinf_vlm.types import UserError

ADAPTER = "default"
"""peft's name of the adapter; in parameter names of a live model, not in files."""
ADAPTER_FILE = "adapter_model.safetensors"
"""Weights in a peft folder."""
FILE_PREFIX = "base_model.model."
"""What stands before a module's path in that file."""
_A, _B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """rank, alpha: the scale is alpha / rank; dropout: probability; targets, frozen: see ``parts.choose_linears``;
    seed: of the first values of A."""

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]
    frozen: frozenset[str]
    seed: int


def is_adapter(name: str) -> bool:
    """Whether ``name`` is that of an adapter's weight, e.g. ``model.visual.merger.mlp.0.lora_A.default.weight``."""
    return name.endswith((_A, _B))


def add_adapters(hf: Any, spec: FamilySpec, settings: LoraSettings) -> None:
    """Puts adapters into the transformers model ``hf`` and freezes all else. UserError when no layer is chosen.

    Parameters are named ``<module path>.base_layer.*``, ``<module path>.lora_A.default.weight`` ([rank, inputs]) and
    ``<module path>.lora_B.default.weight`` ([outputs, rank]).
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = choose_linears(linear_layers(hf, spec), settings.targets, settings.frozen)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[layer.path for layer in chosen],
        bias="none",
    )
    # Freezes what is no adapter. Without memory at first: peft would draw from the process's random state, in fp32.
    inject_adapter_in_model(config, hf, ADAPTER, low_cpu_mem_usage=True)
    bases = {layer.path: hf.get_submodule(layer.path).base_layer.weight for layer in chosen}
    if any(base.is_meta for base in bases.values()):
        for path, base in bases.items():
            for kind in (_A, _B):
                hf.get_submodule((path + kind).removesuffix(".weight")).to(base.dtype)
        return
    for name, value in first_values(chosen, rank=settings.rank, seed=settings.seed):
        base = bases[name.rpartition(".lora_")[0]]
        hf.get_submodule(name.removesuffix(".weight")).weight = nn.Parameter(value.to(base))


def first_values(layers: Iterable[LinearLayer], *, rank: int, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and first value, whole, float32 on the CPU, of each adapter weight of ``layers``, in their order.

    peft's own: A as nn.Linear does it, drawn from ``seed``; B zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        first = torch.empty(rank, layer.inputs)
        yield layer.path + _A, nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator)
        yield layer.path + _B, torch.zeros(layer.outputs, rank)


def linear_layers(hf: Any, spec: FamilySpec) -> list[LinearLayer]:
    """The linear layers of a transformers model that can have adapters, the output head left out."""
    head = hf.get_output_embeddings()
    # Subclasses are left out: torch's attention multiplies by its projection's weight without calling the module.
    return [
        LinearLayer(path=name, part=part_of(f"{name}.", spec), inputs=module.in_features, outputs=module.out_features)
        for name, module in hf.named_modules()
        if type(module) is nn.Linear and module is not head
    ]


def adapted_modules(hf: Any, spec: FamilySpec) -> list[LinearLayer]:
    """The layers of a transformers model that have adapters; empty when it has none."""
    return [
        LinearLayer(path=name, part=part_of(f"{name}.", spec), inputs=module.in_features, outputs=module.out_features)
        for name, module in hf.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    ]


def adapter_names(name: str) -> tuple[str, str]:
    """The names that A and B beside the weight ``name`` have; for a bias, of none."""
    path = name.removesuffix(".weight")
    return path + _A, path + _B


def adapter_scale(config: Mapping[str, Any]) -> float:
    """What B A is multiplied by, of an ``adapter_config``."""
    return config["lora_alpha"] / config["r"]


def merged(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scale: float) -> torch.Tensor:
    """The weight [outputs, inputs] of a layer together with its adapter, float32."""
    return base.float() + (b.float() @ a.float()) * scale


@contextmanager
def without_adapters(hf: Any) -> Iterator[None]:
    """Inside, a transformers model with adapters computes what it does without them (with dropout off)."""
    from peft.helpers import rescale_adapter_scale

    # Scaled by 0, not switched off: peft's switch also freezes, and the sharded parameters are not to be touched.
    with rescale_adapter_scale(hf, 0.0):
        yield


def adapter_config(
    *, model_path: str | Path, rank: int, alpha: int, dropout: float, targets: Sequence[str]
) -> dict[str, Any]:
    """The content of adapter_config.json. targets: module paths in the transformers model, each exactly one layer."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(Path(model_path).resolve()),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], adapter_config: Mapping[str, Any]) -> None:
    """Writes a peft adapter folder. tensors: whole adapter weights by name in the live model.

    ValueError for a name that is no adapter's, and for a target without its two weights: peft would leave such an
    adapter at its first values without a word.
    """
    strange = [name for name in tensors if not is_adapter(name)]
    wanted = {target + kind for target in adapter_config["target_modules"] for kind in (_A, _B)}
    unmatched = sorted(wanted ^ tensors.keys())
    if strange or unmatched:
        raise ValueError(f"{folder}: weights that are no adapters {strange[:3]}, or do not fit {unmatched[:3]}")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {FILE_PREFIX + name.replace(f".{ADAPTER}.weight", ".weight"): tensor for name, tensor in tensors.items()}
    write_peft_files(folder, weights, adapter_config)


def write_peft_files(folder: Path, weights: Mapping[str, torch.Tensor], adapter_config: Mapping[str, Any]) -> None:
    """adapter_model.safetensors and adapter_config.json in ``folder``. weights: by the names that the file has.

    OSError when the disk is full.
    """
    # Not save_file: its file is readable by its owner alone, whatever the umask, and its error is no OSError.
    content = save({name: tensor.contiguous() for name, tensor in weights.items()}, metadata={"format": "pt"})
    (folder / ADAPTER_FILE).write_bytes(content)
    (folder / "adapter_config.json").write_text(json.dumps(dict(adapter_config), indent=2) + "\n", encoding="utf-8")


def check_scale(folder: Path, config: Mapping[str, Any]) -> None:
    """UserError when the adapters in the peft folder ``folder`` have another rank or alpha than ``config`` says.

    Weights do not tell alpha; under another one they are another model. A folder that is not there is not judged.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    trained = json.loads(file.read_text(encoding="utf-8"))
    for theirs, ours in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        if trained[theirs] != config[theirs]:
            raise UserError(
                f"actor.model.{ours}={config[theirs]}: {folder} was trained with {trained[theirs]}; "
                f"set actor.model.{ours}={trained[theirs]}"
            )
