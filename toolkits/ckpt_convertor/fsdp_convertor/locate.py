"""Which weights ``convertor.ckpt_path`` means.

    global_step_N/  or  global_step_N/actor/   -> its lora_adapter, else its full_weights.pt, else its dcp_checkpoint
    .../model_state_dict/  or a file           -> the file of all weights
    .../dcp_checkpoint/                        -> its weights, or its adapter (then described by lora_adapter beside it)
    .../lora_adapter/                          -> the adapter

Invariants: a checkpoint of ours that was not finished, or a copy of one that is cut, is refused. Weights that another
program saved are read when they are named themselves, as the file or the dcp_checkpoint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rlinf_vlm.checkpoints import (
    MARK,
    PARTIAL,
    adapter_folder,
    dcp_folder,
    full_weights_file,
    is_checkpoint_name,
    open_checkpoint,
    state_file,
)
from rlinf_vlm.models.lora import ADAPTER_FILE
from rlinf_vlm.models.weight_files import SafetensorsFiles
from rlinf_vlm.types import UserError
from toolkits.ckpt_convertor.fsdp_convertor.adapter import LORA_KEY, Adapter, read_adapter
from toolkits.ckpt_convertor.fsdp_convertor.tensors import ShardedFolder, TensorSource, TorchFile

KEY = "convertor.ckpt_path"
WHAT = "a global_step_N folder, its dcp_checkpoint, its lora_adapter or a full_weights.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is to be converted: all weights of a model, or a LoRA adapter. One of the two is None."""

    weights: TensorSource | None = None
    adapter: Adapter | None = None

    @property
    def path(self) -> Path:
        """Where it was read from."""
        found = self.weights or (self.adapter and self.adapter.source)
        assert found
        return found.path


def open_weights_of(ckpt_path: str) -> Found:
    """Reads headers only. Raises UserError when there are no finished weights at ``ckpt_path``."""
    path = Path(ckpt_path).resolve()  # the folder that one stands in, as ".", and links have no name to judge by
    if not path.exists():
        raise UserError(f"{KEY}={ckpt_path!r}: no such file or folder; give {WHAT}")
    step_folder = _step_folder(path)
    _check_finished(path, step_folder)
    place = _place(path)
    if place.is_file():
        return Found(weights=TorchFile(place))
    if (place / "adapter_config.json").is_file():
        file = place / ADAPTER_FILE
        if not file.is_file():
            raise UserError(f"{KEY}={ckpt_path!r}: {place} has no {ADAPTER_FILE}; copy the adapter again")
        return Found(adapter=read_adapter(SafetensorsFiles(place, [file]), place))
    source = ShardedFolder(place)
    if any(LORA_KEY.search(key) for key in source.infos):
        beside = place.parent / "lora_adapter"
        if not (beside / "adapter_config.json").is_file():
            raise UserError(
                f"{KEY}={ckpt_path!r}: it holds a LoRA adapter, and {beside / 'adapter_config.json'}, which says "
                "how it was trained, is not there; give the whole global_step_N folder"
            )
        return Found(adapter=read_adapter(source, beside))
    return Found(weights=source)


def _step_folder(path: Path) -> Path | None:
    """The checkpoint folder that ``path`` is or lies in."""
    return next((folder for folder in (path, *path.parents) if is_checkpoint_name(folder.name)), None)


def _check_finished(path: Path, step_folder: Path | None) -> None:
    for folder in (path, *path.parents):
        if re.match(rf"\.?global_step_\d+.*{re.escape(PARTIAL)}", folder.name):
            raise UserError(
                f"{KEY}={str(path)!r}: {folder.name} was not finished being written; give another checkpoint"
            )
    if step_folder is None:
        return
    if (step_folder / MARK).is_file():
        try:
            open_checkpoint(step_folder)
        except UserError as error:
            raise UserError(f"{KEY}={str(path)!r}: {error}") from error
    elif path in (step_folder, step_folder / "actor") or state_file(step_folder).exists():
        raise UserError(
            f"{KEY}={str(path)!r}: {step_folder} has no {MARK} file, so it was not finished being written; give "
            "another checkpoint (or, if another program wrote it, its full_weights.pt or dcp_checkpoint itself)"
        )


def _place(path: Path) -> Path:
    """The file or folder that holds the weights."""
    if path.is_file():
        return path.parent if path.name == ADAPTER_FILE else path
    if (path / ".metadata").is_file() or (path / "adapter_config.json").is_file():
        return path
    if any(path.glob("*.distcp")):
        raise UserError(
            f"{KEY}={str(path)!r}: it has no .metadata file, so it was not finished; give another checkpoint"
        )
    whole = path.parent if path.name == "actor" else path
    inside = [adapter_folder(whole), full_weights_file(whole), dcp_folder(whole), path / full_weights_file(path).name]
    found = next((place for place in inside if place.exists()), None)
    if found is None:
        steps = sorted(folder.name for folder in path.glob("**/global_step_*") if is_checkpoint_name(folder.name))
        there = f"it contains {', '.join(steps[:6])}: give one of them" if steps else f"give {WHAT}"
        raise UserError(f"{KEY}={str(path)!r}: the folder is no checkpoint; {there}")
    return found if found.is_file() or found == path else _place(found)
