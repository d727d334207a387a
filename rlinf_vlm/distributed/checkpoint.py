"""A checkpoint folder that is there whole or not at all.

    global_step_N/actor/model_state_dict/full_weights.pt   all weights, Hugging Face names, master precision
    global_step_N/state.json                               the step; written last: the mark of a finished checkpoint

Written into ``global_step_N.partial`` and renamed, so that a kill or a full disk never leaves a folder that looks
finished. Does not save the optimizer: a run starts from the weights, it is not resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlinf_vlm.types import UserError


def write_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Writes ``folder`` aside and renames it; an older folder of that name is replaced.

    Raises UserError, with the half-written folder removed, when the disk does not take it.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        target = partial / "actor" / "model_state_dict"
        target.mkdir(parents=True)
        with (target / "full_weights.pt").open("wb") as file:
            torch.save(dict(weights), file)
            file.flush()
            os.fsync(file.fileno())
        with (partial / "state.json").open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 2**20
        raise UserError(
            f"the checkpoint {folder} could not be written ({error}; {free:.0f} MiB are free there)"
        ) from error
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
