"""What a checkpoint is on disk: its files, its mark, its state. Reads and judges folders; writes nothing, no torch.

    <run folder>/<experiment_name>/checkpoints/
      global_step_N/                    N finished optimizer steps
        COMPLETE                        the mark: every file and its size; written last
        actor/state.json                step, data cursor, random states, config, versions
        actor/dcp_checkpoint/           weights, optimizer and schedule, sharded (torch.distributed.checkpoint)
        actor/model_state_dict/full_weights.pt     all weights in one file, Hugging Face names (can be switched off)
        actor/lora_adapter/             instead of full_weights.pt with LoRA: a peft adapter folder

A folder is written beside its place and renamed, so ``global_step_N`` is there whole or not at all; the mark also tells
a copy that was cut. What is left of a save that did not end has a name with ``.partial`` in it and is never read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlinf_vlm.types import UserError

MARK = "COMPLETE"
PARTIAL = ".partial"
"""Part of the name of a folder that is being written."""
_NAME = re.compile(r"global_step_(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A finished checkpoint folder. Made by ``open_checkpoint``."""

    folder: Path
    """``.../global_step_N``."""
    step: int
    """Finished optimizer steps."""
    samples: int
    """Data cursor: samples of the training stream that were consumed."""
    saved_at: float
    """Seconds since the epoch."""
    state: Mapping[str, Any]
    """``state.json``, whole."""

    @property
    def run_folder(self) -> Path:
        """The folder of the run that wrote it."""
        return self.folder.parents[2]

    @property
    def dcp(self) -> Path:
        """The sharded weights, optimizer and schedule."""
        return dcp_folder(self.folder)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` optimizer steps stands."""
    return checkpoints / f"global_step_{step}"


def dcp_folder(folder: Path) -> Path:
    """The sharded part of the checkpoint ``folder``."""
    return folder / "actor" / "dcp_checkpoint"


def full_weights_file(folder: Path) -> Path:
    """The one file of all weights."""
    return folder / "actor" / "model_state_dict" / "full_weights.pt"


def adapter_folder(folder: Path) -> Path:
    """The peft folder of a LoRA run."""
    return folder / "actor" / "lora_adapter"


def state_file(folder: Path) -> Path:
    """Step, cursor, random states, config and versions."""
    return folder / "actor" / "state.json"


def list_files(folder: Path) -> dict[str, int]:
    """Relative path -> bytes of every file below ``folder``, the mark left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARK)
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def is_checkpoint_name(name: str) -> bool:
    """Whether ``name`` is that of a finished checkpoint folder, e.g. "global_step_12"."""
    return _NAME.fullmatch(name) is not None


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``. Raises UserError when it was not finished, or when files are missing or cut."""
    mark = folder / MARK
    if not mark.is_file():
        raise UserError(f"{folder} has no {MARK} file, so it was not finished being written; give another checkpoint")
    try:
        listed: Mapping[str, int] = json.loads(mark.read_text(encoding="utf-8"))["files"]
        state = json.loads(state_file(folder).read_text(encoding="utf-8"))
        step, samples, saved_at = int(state["step"]), int(state["samples"]), float(state["saved_at"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its {MARK} or state.json cannot be read ({error!r}); copy it again") from error
    for name, size in listed.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} of {size} bytes"
            raise UserError(f"{folder}: {name} {there}; copy the checkpoint again, or give another one")
    return Checkpoint(folder=folder.resolve(), step=step, samples=samples, saved_at=saved_at, state=state)


def find_checkpoint(path: Path, key: str) -> Checkpoint:
    """The checkpoint that ``path`` names: a ``global_step_N`` or something in it, or the newest one below a folder.

    key: of the config, for messages. Raises UserError when there is none, or when the named one is not whole.
    """
    whole = Path(os.path.abspath(path))  # the place that one stands in may be named as well
    for folder in (whole, *whole.parents):
        if is_checkpoint_name(folder.name) and folder.is_dir():
            return open_checkpoint(folder)
    if not path.is_dir():
        raise UserError(f"{key}={str(path)!r}: no such folder; give a global_step_N folder, or a run folder")
    newest, unfinished = newest_checkpoint(path)
    if newest is None:
        left = f" ({len(unfinished)} cannot be used: {unfinished[0]})" if unfinished else ""
        raise UserError(
            f"{key}={str(path)!r}: no finished checkpoint (global_step_N) below it{left}; give another folder"
        )
    return newest


def newest_checkpoint(root: Path, experiment: str | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint below ``root`` that was saved last, and why those saved or begun after it cannot be used.

    ``root`` may be a ``checkpoints`` folder, a run folder or a folder of run folders; experiment: only of this name.
    """
    found = [path for path in _candidates(root) if experiment in (None, path.parents[1].name)]
    passed_over: list[str] = []
    for path in sorted(found, key=_age, reverse=True):
        if not is_checkpoint_name(path.name):
            passed_over.append(f"{path} was not finished being written")
            continue
        try:
            return open_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def _candidates(root: Path) -> Iterator[Path]:
    """Folders that are or were to become checkpoints, finished or not."""
    for pattern in ("global_step_*", "checkpoints/global_step_*", "*/checkpoints/global_step_*"):
        yield from (path for path in root.glob(pattern) if path.is_dir())
    yield from (path for path in root.glob("*/*/checkpoints/global_step_*") if path.is_dir())


def _age(path: Path) -> tuple[float, str]:
    """When a checkpoint was saved; when a folder last changed for one that was not finished."""
    try:
        return float(json.loads(state_file(path).read_text(encoding="utf-8"))["saved_at"]), path.name
    except (OSError, ValueError, KeyError, TypeError):
        return path.stat().st_mtime if path.exists() else 0.0, path.name  # another run may have removed it just now
