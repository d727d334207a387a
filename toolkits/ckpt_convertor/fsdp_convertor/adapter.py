"""A LoRA adapter: what it adds to the base weights, and the folder that peft reads.

    W' = W + s B A        A [r, in], B [out, r], s = alpha / r (alpha / sqrt(r) with use_rslora)

Dataflow: adapter tensors (peft's file, or a dcp_checkpoint) and adapter_config.json -> ``Adapter`` -> ``MergedSource``:
the base folder's tensors, with the adapter added when one is read; or ``write_adapter``: a peft folder.
Invariants: the sum is made in float32 and never in place; every adapter tensor is used, kinds of adapters that add
something else (DoRA, trained biases, whole modules) are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from rlinf_vlm.models.lora import FILE_PREFIX, write_peft_files
from rlinf_vlm.models.naming import Naming, Unit
from rlinf_vlm.models.weight_files import TensorInfo
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.tensors import TensorSource

LORA_KEY = re.compile(r"\.lora_(A|B)(?:\.default)?\.weight$")
_UNSUPPORTED = {
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "use_qalora": False,
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "bias": "none",
}
"""Fields of adapter_config.json -> the value with which the sum above is all there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter that was not read yet.

    pairs: path of a module of the transformers model -> keys of its A and B in ``source``; config: adapter_config.json;
    dtype: type that A and B are brought to when they are read, None leaves them.
    """

    source: TensorSource
    config: Mapping[str, Any]
    pairs: Mapping[str, tuple[str, str]]
    dtype: torch.dtype | None = None

    def scale(self, module: str) -> float:
        """s of a module."""
        rank = self.source.infos[self.pairs[module][0]].shape[0]
        patterns: Mapping[str, Any] = self.config.get("alpha_pattern") or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), self.config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def read(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of a module."""
        key_a, key_b = self.pairs[module]
        tensors = self.source.read([key_a, key_b])
        a, b = (tensors[key].to(self.dtype or tensors[key].dtype) for key in (key_a, key_b))
        return a, b

    def delta(self, module: str) -> torch.Tensor:
        """s B A, [out, in] float32."""
        a, b = self.read(module)
        return (b.float() @ a.float()) * self.scale(module)


def read_adapter(source: TensorSource, folder: Path) -> Adapter:
    """The adapter in ``source``, described by ``folder``/adapter_config.json.

    Raises UserError when its kind is unsupported, or tensors and description do not fit each other.
    """
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        rank, kind = int(config["r"]), config.get("peft_type")
        float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"convertor.ckpt_path: {file} describes no LoRA adapter ({error!r}); copy it again") from error
    odd = {
        name: config.get(name) for name, plain in _UNSUPPORTED.items() if config.get(name) not in (plain, None, [], {})
    }
    if kind not in ("LORA", None) or odd:
        named = ", ".join(f"{name}={value!r}" for name, value in odd.items()) or f"peft_type={kind!r}"
        raise UserError(f"convertor.ckpt_path: {file} says {named}, which cannot be merged here; merge it with peft")
    pairs = _pairs(source)
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(module == target or module.endswith(f".{target}") for module in pairs):
            raise UserError(
                f"convertor.ckpt_path: {source.path} has no tensors for {target}, one of the target_modules of {file}; "
                "copy the checkpoint again"
            )
    ranks = config.get("rank_pattern") or {}
    for module, (key_a, key_b) in pairs.items():
        shape_a, shape_b = source.infos[key_a].shape, source.infos[key_b].shape
        wanted = ranks.get(get_pattern_key(list(ranks), module), rank)
        if len(shape_a) != 2 or len(shape_b) != 2 or not shape_a[0] == shape_b[1] == wanted:
            raise UserError(
                f"convertor.ckpt_path: {key_a} {list(shape_a)} and {key_b} {list(shape_b)} are no pair of rank "
                f"{wanted} (r of {file}); copy the checkpoint again"
            )
    return Adapter(source=source, config=config, pairs=pairs)


def _pairs(source: TensorSource) -> dict[str, tuple[str, str]]:
    sides: dict[str, dict[str, str]] = {}
    for key in source.infos:
        match = LORA_KEY.search(key)
        if match is None:
            raise UserError(
                f"convertor.ckpt_path: {source.path} has the tensor {key} beside LoRA's A and B, which cannot be "
                "merged; give a checkpoint of an adapter alone"
            )
        module = key[: match.start()].removeprefix(FILE_PREFIX)
        sides.setdefault(module, {})[match[1]] = key
    half = [module for module, keys in sides.items() if len(keys) != 2]
    if half or not sides:
        named = f"only one of A and B for {half[0]}" if half else "no LoRA tensors"
        raise UserError(f"convertor.ckpt_path: {source.path} has {named}; copy the checkpoint again")
    return {module: (keys["A"], keys["B"]) for module, keys in sides.items()}


class MergedSource:
    """The base folder's tensors under their names on disk, with an adapter added; a ``TensorSource``."""

    def __init__(self, base: TensorSource, adapter: Adapter, naming: Naming, units: Sequence[Unit]) -> None:
        self.path = adapter.source.path
        self.infos: Mapping[str, TensorInfo] = base.infos
        self._base = base
        self._adapter = adapter
        self._module = _places(adapter, base, naming, units)

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``TensorSource``; tensors with something added are float32, whatever ``infos`` says."""
        found = self._base.read(keys)
        for key in found:
            if key in self._module:
                found[key] = found[key].float() + self._adapter.delta(self._module[key])
        return found


def _places(adapter: Adapter, base: TensorSource, naming: Naming, units: Sequence[Unit]) -> dict[str, str]:
    """Name on disk -> module whose adapter is added there."""
    by_parameter = {unit.memory[0]: unit.disk[0] for unit in units if unit.memory and unit.converter is None}
    places: dict[str, str] = {}
    for module, (key_a, key_b) in adapter.pairs.items():
        parameter = f"{module}.weight"
        disk = by_parameter.get(parameter)
        if disk is None:
            raise UserError(
                f"convertor.ckpt_path: the adapter has {key_a}, and the model in model.model_path has no single stored "
                f"tensor for {parameter}; set model.model_path to the folder that the adapter was trained on"
            )
        if len(naming.aliases(parameter)) > 1:
            raise UserError(
                f"convertor.ckpt_path: the adapter has {key_a}, but {parameter} is tied to "
                f"{naming.aliases(parameter)[1]}, which merging would change too; "
                "set convertor.merge_lora_weights=false"
            )
        shape = (adapter.source.infos[key_b].shape[0], adapter.source.infos[key_a].shape[1])
        if base.infos[disk].shape != shape:
            raise UserError(
                f"convertor.ckpt_path: {key_b} times {key_a} is {list(shape)}, but {disk} in model.model_path is "
                f"{list(base.infos[disk].shape)}; set model.model_path to the folder that the adapter was trained on"
            )
        places[disk] = module
    return places


def write_adapter(adapter: Adapter, folder: Path, base_path: str) -> dict[str, torch.Tensor]:
    """Writes adapter_config.json and adapter_model.safetensors; returns the tensors of the latter.

    base_path: what peft loads when it is given the folder alone.
    """
    tensors = {
        f"{FILE_PREFIX}{module}.lora_{side}.weight": tensor
        for module in adapter.pairs
        for side, tensor in zip("AB", adapter.read(module), strict=True)
    }
    config = {**adapter.config, "base_model_name_or_path": base_path, "inference_mode": True}
    write_peft_files(folder, tensors, config)
    return tensors
