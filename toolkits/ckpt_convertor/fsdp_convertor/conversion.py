"""One conversion: settings -> headers and rules checked -> the folder written aside -> verified -> in place.

Invariants: everything that can be found wrong without reading a weight is found before the first byte is written; a
failure, of the verification too, leaves no folder behind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from rlinf_vlm.checkpoints import MARK
from rlinf_vlm.models.families import check_family, family_for, resolve_family
from rlinf_vlm.models.folder import read_model_folder
from rlinf_vlm.models.loading import empty_model
from rlinf_vlm.models.lora import ADAPTER_FILE
from rlinf_vlm.models.naming import Naming, Unit
from rlinf_vlm.models.weight_files import SafetensorsFiles, weight_files
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.adapter import Adapter, MergedSource, write_adapter
from toolkits.ckpt_convertor.fsdp_convertor.locate import Found, open_weights_of
from toolkits.ckpt_convertor.fsdp_convertor.matching import Plan, match
from toolkits.ckpt_convertor.fsdp_convertor.output import (
    check_space,
    copy_files,
    folder_aside,
    other_files,
    plan_files,
    write_config,
    write_weights,
)
from toolkits.ckpt_convertor.fsdp_convertor.settings import BaseModelConfig, Settings
from toolkits.ckpt_convertor.fsdp_convertor.verify import Check, Verifier, compute_type, image_prompt

SPARE = 64 * 2**20
"""Bytes of disk wanted beyond the weights, for the other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written. copied: tensors of the base that the checkpoint has not; checks: None when not verified."""

    source: Path
    save_path: Path
    what: str
    tensors: int
    copied: int
    nbytes: int
    shards: int
    dtype: str
    checks: Sequence[Check] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model folder that the training started from, without its weights. config: as transformers reads it."""

    path: Path
    config: Any
    json: dict[str, Any]
    stored: SafetensorsFiles
    naming: Naming
    units: Sequence[Unit]


def convert(settings: Settings, tell: Callable[[str], None]) -> Report:
    """Converts. ``tell`` is given a line about every file written.

    Raises UserError for what the user can mend, VerificationFailed when the result is not the checkpoint.
    """
    convertor = settings.convertor
    base = open_base(settings.model)
    found = open_weights_of(convertor.ckpt_path)
    if found.adapter is not None:
        trained_on = str(found.adapter.config.get("base_model_name_or_path"))
        if Path(trained_on).resolve() != base.path.resolve():
            tell(f"note: the adapter says it was trained on {trained_on}; it is used with {base.path}")
    dtype: torch.dtype | None = getattr(torch, convertor.torch_dtype) if convertor.torch_dtype else None
    save_path = Path(convertor.save_path).resolve()
    _check_place(save_path, base.path.resolve())
    if found.adapter is not None and not convertor.merge_lora_weights:
        return _convert_adapter(settings, base, replace(found.adapter, dtype=dtype), save_path)
    return _convert_whole(settings, base, found, dtype, save_path, tell)


def _check_place(save_path: Path, base: Path) -> None:
    """UserError for a place inside the base (later conversions would copy it) or a checkpoint (removed with it)."""
    for folder in save_path.parents:
        if folder == base or (folder / MARK).is_file():
            what = "model.model_path" if folder == base else "a checkpoint, which runner.keep_last may remove"
            raise UserError(f"convertor.save_path={str(save_path)!r} is inside {what} ({folder}); name another folder")


def open_base(model: BaseModelConfig) -> Base:
    """Reads config and headers. Raises UserError when the folder is not whole or not of the family."""
    from transformers import AutoConfig

    try:
        folder = read_model_folder(model.model_path)
        spec = resolve_family(model.model_type or family_for(folder.model_type))
        check_family(spec, folder.model_type)
    except (UserError, ValueError) as error:
        text = str(error).replace("actor.model.", "model.")
        told = text if text.startswith("model.model_path") else f"model.model_type={model.model_type!r}: {text}"
        raise UserError(told) from error
    written = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in written:
        raise UserError(f"model.model_path={model.model_path!r}: it is quantized; give the model before quantization")
    try:
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=model.trust_remote_code)
        empty = empty_model(config, dtype=torch.float32, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:240]
        raise UserError(f"model.model_path={model.model_path!r}: no image-text-to-text model ({reason})") from error
    files = weight_files(folder.path)
    if not files:
        raise UserError(
            f"model.model_path={str(folder.path)!r}: its weights are not in model.safetensors (or files of an index); "
            "save it with save_pretrained of transformers, which writes that"
        )
    stored = SafetensorsFiles(folder.path, files)
    naming = Naming(empty)
    units = naming.units(stored.infos, key="model.model_path")
    return Base(path=folder.path, config=config, json=written, stored=stored, naming=naming, units=units)


def _convert_whole(
    settings: Settings,
    base: Base,
    found: Found,
    dtype: torch.dtype | None,
    save_path: Path,
    tell: Callable[[str], None],
) -> Report:
    convertor = settings.convertor
    adapter = found.adapter
    weights = MergedSource(base.stored, adapter, base.naming, base.units) if adapter else found.weights
    assert weights is not None
    plan = match(base.naming, base.units, base.stored, weights, dtype)
    infos = plan.infos()
    total = sum(info.nbytes for info in infos.values())
    main = _main_type(plan)
    compute = _compute_type(settings, base, written=dtype, lora=adapter is not None)
    others = other_files(base.path)
    files = plan_files(infos, convertor.max_shard_size)
    with folder_aside(save_path) as aside:
        check_space(aside, total + _size(base.path, others) + SPARE)
        copy_files(base.path, aside, others)
        write_config(base.json, aside, main)
        write_weights(aside, files, plan.disk_tensors(), tell)
        checks = None
        if compute is not None:
            verifier = _verifier(settings, base, aside, compute)
            checks = verifier.merged_adapter(plan, adapter) if adapter else verifier.whole_model(plan)
    return Report(
        source=found.path,
        save_path=save_path,
        what="base model with the LoRA adapter merged" if adapter else "whole model",
        tensors=len(infos),
        copied=plan.copied,
        nbytes=total,
        shards=len(files),
        dtype=_types({info.dtype for info in infos.values()}),
        checks=checks,
    )


def _convert_adapter(settings: Settings, base: Base, adapter: Adapter, save_path: Path) -> Report:
    merged = match(
        base.naming, base.units, base.stored, MergedSource(base.stored, adapter, base.naming, base.units), None
    )
    compute = _compute_type(settings, base, written=None, lora=True)
    others = other_files(base.path)
    with folder_aside(save_path) as aside:
        needed = sum(adapter.source.infos[key].nbytes for pair in adapter.pairs.values() for key in pair)
        check_space(aside, needed + _size(base.path, others) + SPARE)
        copy_files(base.path, aside, others)
        tensors = write_adapter(adapter, aside, str(base.path.resolve()))
        checks = _verifier(settings, base, aside, compute).adapter_alone(merged) if compute is not None else None
    return Report(
        source=adapter.source.path,
        save_path=save_path,
        what=f"LoRA adapter ({ADAPTER_FILE})",
        tensors=len(tensors),
        copied=0,
        nbytes=sum(tensor.nbytes for tensor in tensors.values()),
        shards=1,
        dtype=_types({tensor.dtype for tensor in tensors.values()}),
        checks=checks,
    )


def _compute_type(settings: Settings, base: Base, *, written: torch.dtype | None, lora: bool) -> torch.dtype | None:
    """What to verify in, or None when nothing is to be verified."""
    if not settings.convertor.verify:
        return None
    image_prompt(base.path, trust_remote_code=settings.model.trust_remote_code)  # tried before anything is written
    parameters = sum(math.prod(shape) for shape in base.naming.parameters.values())
    return compute_type(parameters, written=written, lora=lora)


def _verifier(settings: Settings, base: Base, folder: Path, compute: torch.dtype) -> Verifier:
    return Verifier(
        base=base.path,
        folder=folder,
        config=base.config,
        naming=base.naming,
        compute=compute,
        trust_remote_code=settings.model.trust_remote_code,
    )


def _main_type(plan: Plan) -> torch.dtype:
    """The floating-point type with most bytes: what config.json says of the model."""
    sizes: dict[torch.dtype, int] = {}
    for info in plan.infos().values():
        if info.dtype.is_floating_point:
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def _types(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _size(folder: Path, names: Sequence[Path]) -> int:
    return sum((folder / name).stat().st_size for name in names)
