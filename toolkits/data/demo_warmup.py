"""The small supervised training that a demo of reinforcement learning starts from.

    OUT/geometry_rl (tables, model with random weights)
        -> examples/train_vlm.py with geometry_warmup.yaml, in a process of its own
        -> its checkpoint, converted -> OUT/geometry_rl/warm/{model/, log/, demo.json}

Likewise OUT/geometry_tool with geometry_tool_warmup.yaml.

Invariants: the folder is complete or absent (a warm-up that is interrupted starts anew); its marker names the data and
the config that it was made from, by content. Does not draw or make the data.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from toolkits.data.demo_folder import MARKER, write_marker

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "config" / "geometry_warmup.yaml"
TOOL_CONFIG = ROOT / "examples" / "config" / "geometry_tool_warmup.yaml"
WARM = "warm"
"""Folder of the warm-up beside the tables."""


class WarmUpFailed(Exception):
    """The training ended with ``status``; it has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the warm-up ended with status {status}, see above")
        self.status = status


def warmed_from(data: Path, config: Path) -> dict[str, Any]:
    """What the marker of a warm-up by ``config`` on the demo ``data`` says of how it was made."""
    return {
        "data": hashlib.sha256((data / MARKER).read_bytes()).hexdigest(),
        "config": hashlib.sha256(config.read_bytes()).hexdigest(),
    }


def write_warm_up(folder: Path, data: Path, config: Path) -> None:
    """Trains by ``config`` on the demo ``data`` and writes model, log and, last, the marker into the empty ``folder``.

    Raises WarmUpFailed, or UserError where ``config`` saves no checkpoint.
    """
    from examples.train_vlm import run_child
    from rlinf_vlm.checkpoints import find_checkpoint

    log = folder / "log"
    command = [sys.executable, str(ROOT / "examples" / "train_vlm.py"), "--config-name", str(config)]
    environment = {**os.environ, "RLINF_VLM_DEMO": str(data.parent), "PYTHONPATH": str(ROOT)}
    status = run_child([*command, "--log-path", str(log)], environment)
    if status:
        raise WarmUpFailed(status)
    checkpoint = find_checkpoint(log, "runner.save_interval").folder
    _convert(checkpoint, data / "model", folder / "model")
    shutil.rmtree(checkpoint.parents[1])
    write_marker(folder, warmed_from(data, config))


def _convert(checkpoint: Path, base: Path, out: Path) -> None:
    from toolkits.ckpt_convertor.fsdp_convertor.conversion import convert
    from toolkits.ckpt_convertor.fsdp_convertor.settings import BaseModelConfig, ConvertorConfig, Settings

    convertor = ConvertorConfig(ckpt_path=str(checkpoint), save_path=str(out), torch_dtype="float32")
    convert(Settings(convertor=convertor, model=BaseModelConfig(model_path=str(base))), lambda line: None)
