"""A run folder as the report needs it: config, metrics, plan, versions.

    metrics.jsonl, config.yaml (config.2.yaml, ..), plan.txt, state.json of a checkpoint --read_run--> Run

Invariants: what is missing or broken is missing in ``Run`` and said in its ``notes``; only a folder that is no run's at
all is an error. Several lines of one step are put together; where a metric stands twice at a step, the later line
counts, as in a run that was resumed. A value that is no number is passed over; NaN and infinity are kept.
Does not read rollouts or evaluations' samples (``samples``), nor anything of the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlinf_vlm.rollout.files import recorded_steps
from rlinf_vlm.types import UserError

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of one run. steps [n] int64, ascending, each once; values [n] float64, not always finite."""

    steps: np.ndarray
    values: np.ndarray

    def last(self) -> float:
        """The value of the last step."""
        return float(self.values[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run folder.

    name: of the folder; label: told apart from the other runs' names; config: of the first start, empty where it is
    missing; later_configs: of further starts in the folder; metrics: by name; began, ended: of the first start and of
    the last metric, by the files' times; versions: of Python and packages, from a checkpoint; notes: what is missing.
    """

    folder: Path
    label: str
    config: Mapping[str, Any]
    later_configs: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, Metric]
    plan: str
    began: datetime | None
    ended: datetime | None
    versions: Mapping[str, str]
    notes: tuple[str, ...]

    def setting(self, key: str, default: Any = None) -> Any:
        """The config's value at a dotted ``key``."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node

    @property
    def steps(self) -> int:
        """Finished optimizer steps, by the training's metrics."""
        trained = (metric.steps[-1] for name, metric in self.metrics.items() if name.startswith("train/"))
        return int(max(trained, default=0))


def read_run(folder: Path, label: str = "") -> Run:
    """What is on record in ``folder``. Raises UserError unless it is a run's folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, such as logs/20260101-120000")
    has_samples = bool(recorded_steps(folder)) or any((folder / "eval").glob("*.jsonl"))
    if not (folder / METRICS).is_file() and not (folder / "config.yaml").is_file() and not has_samples:
        raise UserError(
            f"{folder}: not a run folder (no {METRICS}, config.yaml, rollouts/ or eval/ in it); give runner.logger."
            "log_path of a run"
        )
    notes: list[str] = []
    metrics = read_metrics(folder / METRICS, notes)
    config, *later = [_yaml(path, notes) for path in _starts(folder)] or [{}]
    if not config:
        notes.append("There is no readable config.yaml: settings, pictures of rows and token texts are not known.")
    return Run(
        folder=folder,
        label=label or folder.resolve().name,
        config=config,
        later_configs=tuple(later),
        metrics=metrics,
        plan=_text(folder / "plan.txt"),
        began=_time(folder / "config.yaml"),
        ended=_time(folder / METRICS),
        versions=_versions(folder),
        notes=tuple(notes),
    )


def read_metrics(file: Path, notes: list[str]) -> dict[str, Metric]:
    """The metrics of a metrics.jsonl, by name in the order of their first appearance; what is unreadable is added to
    ``notes``."""
    if not file.is_file():
        notes.append(f"There is no {file.name}: no curves.")
        return {}
    found: dict[str, dict[int, float]] = {}
    broken = 0
    with file.open("rb") as stream:
        for text in stream:
            line = _line(text)
            if line is None:
                broken += bool(text.strip())
                continue
            step = line["step"]
            for name, value in line.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                    found.setdefault(name, {})[step] = float(value)
    if broken:
        notes.append(f"{broken} line{'s' if broken > 1 else ''} of {file.name} could not be read (cut, or no JSON).")
    if not found:
        notes.append(f"{file.name} has no metrics: no curves.")
    return {name: _metric(values) for name, values in found.items()}


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int) and not isinstance(step, bool) else None


def _metric(values: Mapping[int, float]) -> Metric:
    steps = np.array(sorted(values), dtype=np.int64)
    return Metric(steps=steps, values=np.array([values[step] for step in steps.tolist()]))


def _starts(folder: Path) -> list[Path]:
    """config.yaml, config.2.yaml, .. in order."""
    found = ((re.fullmatch(r"config(?:\.(\d+))?\.yaml", path.name), path) for path in folder.glob("config*.yaml"))
    return [path for _, path in sorted((int(name[1] or 1), path) for name, path in found if name)]


def _yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        notes.append(f"{path.name} cannot be read ({' '.join(str(error).split())[:120]}).")
        return {}
    return tree if isinstance(tree, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _time(path: Path) -> datetime | None:
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone() if path.is_file() else None


def _versions(folder: Path) -> dict[str, str]:
    """Of the newest checkpoint that says them."""
    files = sorted(folder.glob("*/checkpoints/global_step_*/actor/state.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(files):
        try:
            said = json.loads(path.read_text(encoding="utf-8")).get("versions")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(said, dict):
            return {str(name): str(version) for name, version in said.items() if version}
    return {}
