"""Which checkpoint a run's weights come from, and whether the config still is the one that it was trained with.

    runner.resume_dir | runner.ckpt_path -> Origin;  state.json of then + Config of now -> differences

What matters is what the next losses depend on: the model, the training rows and their order, the global batch. Paths
are compared by what they hold (files by name and size), so a moved folder is no difference. Ranks, micro-batches,
packing and sharding may change. Everything else that changed (say, a learning rate) is told, and taken as meant.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlinf_vlm.checkpoints import Checkpoint, find_checkpoint, is_checkpoint_name, newest_checkpoint
from rlinf_vlm.config.resolve import Schedule, Start, samples_per_step
from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.files import HubDataset, find_source
from rlinf_vlm.types import UserError

AUTO = "auto"
VERSIONED = ("torch", "transformers", "peft", "ray", "datasets")
FREE_DATA = ("train_data_paths", "eval_data_paths", "test_data_paths", "num_workers", "lazy_loading", "on_bad_row")
"""Keys of ``data`` that a resumed run may change (of the training rows' paths, what they hold is compared)."""
FREE_ALGORITHM = ("eval_sampling_params", "eval_settings", "reflection_words")
"""Keys of ``algorithm`` that a resumed run may change: what is only measured."""
FREE_MODEL = ("model_path", "attn_implementation", "trust_remote_code")
"""Keys of ``actor.model`` that a resumed run may change (of the folder, what it holds is compared)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Weights that do not come from the model folder."""

    weights: Path
    """A dcp_checkpoint or a full_weights.pt."""
    step: int
    """Optimizer steps behind these weights; 0 where it is not known."""
    resumed: Checkpoint | None = None
    """The checkpoint with which a training goes on; None when only its weights are taken."""

    @property
    def start(self) -> Start:
        """Where the training goes on."""
        return Start() if self.resumed is None else Start(step=self.resumed.step, samples=self.resumed.samples)


def find_origin(config: Config, *, neighbours: bool) -> tuple[Origin | None, list[str]]:
    """What ``runner.resume_dir`` or ``runner.ckpt_path`` names, None for neither; and what there is to say about it.

    neighbours: whether ``auto`` looks into all run folders beside this one (a run folder of its own for each start), or
    only into this one. Raises UserError for a path without a finished checkpoint.
    """
    runner = config.runner
    if runner.ckpt_path is not None:
        return _weights_only(Path(runner.ckpt_path)), []
    if runner.resume_dir is None:
        return None, []
    trains = config.data.train_data_paths is not None
    if runner.resume_dir != AUTO:
        found = find_checkpoint(Path(runner.resume_dir), "runner.resume_dir")
        return _whole(found, trains=trains), _saved_later(found) if trains else []
    newest, notes = _newest(config, neighbours=neighbours)
    if newest is None and not trains:
        raise UserError(f"{notes[-1]}, so there is nothing to evaluate; set runner.resume_dir to a checkpoint")
    return None if newest is None else _whole(newest, trains=trains), notes


def _whole(found: Checkpoint, *, trains: bool) -> Origin:
    """A training goes on with the checkpoint, an evaluation takes its weights."""
    return Origin(weights=found.dcp, step=found.step, resumed=found if trains else None)


def _saved_later(named: Checkpoint) -> list[str]:
    """A word of warning when the run has gone further than the checkpoint that was ``named``."""
    newest, _ = newest_checkpoint(named.folder.parent)
    if newest is None or newest.saved_at <= named.saved_at:
        return []
    return [f"{newest.folder} was saved later: runner.resume_dir=auto takes that one until this run has saved again"]


def _newest(config: Config, *, neighbours: bool) -> tuple[Checkpoint | None, list[str]]:
    logger = config.runner.logger
    root = Path(logger.log_path).absolute()
    root = root.parent if neighbours else root
    found, passed_over = newest_checkpoint(root, logger.experiment_name)
    notes = [f"passed over: {reason}" for reason in passed_over]
    if found is None:
        where = f"of experiment_name={logger.experiment_name!r} below {root}"
        notes.append(f"runner.resume_dir=auto: there is no finished checkpoint {where}")
    return found, notes


def _weights_only(path: Path) -> Origin:
    if path.is_file():
        holder = next((folder for folder in path.parents if is_checkpoint_name(folder.name)), None)
        return Origin(weights=path, step=0 if holder is None else find_checkpoint(holder, "runner.ckpt_path").step)
    if (path / ".metadata").is_file() and not any(is_checkpoint_name(folder.name) for folder in path.parents):
        return Origin(weights=path, step=0)  # a dcp_checkpoint that was copied out of its checkpoint
    found = find_checkpoint(path, "runner.ckpt_path")
    return Origin(weights=found.dcp, step=found.step)


def what_matters(config: Config, train_rows: int | None) -> dict[str, Any]:
    """Dotted key -> value of everything that the next losses depend on, as JSON gives it back."""
    tree = config.model_dump(mode="json")
    actor = tree["actor"]
    unread = () if config.actor.model.is_lora else tuple(name for name in actor["model"] if name.startswith("lora_"))
    model = {name: value for name, value in actor["model"].items() if name not in FREE_MODEL + unread}
    trains_by: dict[str, Any] = {"actor.global_batch_size": actor["global_batch_size"]}
    if config.runner.task_type != "sft":
        algorithm = {name: value for name, value in tree["algorithm"].items() if name not in FREE_ALGORITHM}
        # Options stay whole: taken apart, one that only one of the two has would be no difference.
        reward = {f"reward.{name}": tree["reward"][name] for name in ("name", "options")}
        trains_by = {**flat(algorithm, "algorithm."), **reward}
    kept = {
        "runner.task_type": config.runner.task_type,
        "actor.seed": actor["seed"],
        **trains_by,
        **flat(model, "actor.model."),
        "actor.model.model_path (config.json, weights)": _model_content(Path(config.actor.model.model_path)),
        **flat(actor["fsdp_config"]["mixed_precision"], "actor.fsdp_config.mixed_precision."),
        **flat({name: value for name, value in tree["data"].items() if name not in FREE_DATA}, "data."),
        "data.train_data_paths (rows)": train_rows,
        "data.train_data_paths (files)": _data_content(config.data.train_data_paths),
    }
    return json.loads(json.dumps(kept))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {prefix + name: value}
    return found


def check_same(config: Config, checkpoint: Checkpoint, train_rows: int | None) -> list[str]:
    """Differences that were let through, one line each. Raises UserError with those that matter, unless forced."""
    now, then = what_matters(config, train_rows), checkpoint.state["matters"]
    hard = _differences(then, now)
    if hard and not config.runner.resume_force:
        name = checkpoint.folder
        lines = [f"{key}={_short(new)}: {name} was trained with {_short(old)}" for key, old, new in hard]
        remedy = "set it back" if len(lines) == 1 else f"set these {len(lines)} back"
        raise UserError("\n".join([*lines[:-1], f"{lines[-1]}; {remedy}, or set runner.resume_force=true"]))
    free = [
        item
        for item in _differences(checkpoint.state["config"], flat(config.model_dump(mode="json")))
        if item[0].startswith(("actor.", "data.")) and item[0] not in now
    ]
    return [f"{key} was {_short(old)}, is {_short(new)}" for key, old, new in [*hard, *free]]


def first_weights(config: Config, origin: Origin | None) -> str | None:
    """The weights that the run began with, also where it is resumed: a checkpoint's, None for the model folder's."""
    if origin is None:
        return None
    if origin.resumed is None:
        return str(origin.weights.absolute())
    path = origin.resumed.state.get("first_weights")
    if path is not None and config.algorithm.kl_beta and not Path(path).exists():
        raise UserError(
            f"algorithm.kl_beta={config.algorithm.kl_beta:g} measures the divergence from the weights that the run "
            f"began with, {path}, which are not there any more; put them back"
        )
    return path


def describe(
    config: Config, schedule: Schedule, step: int, samples: int | None = None, first_weights: str | None = None
) -> dict[str, Any]:
    """What state.json says of a run after ``step`` steps; the ranks add their random states.

    samples: the data cursor, where it does not follow from the step; first_weights: what the run began with, through
    all of its starts, None for the model folder.
    """
    if samples is None:
        samples = schedule.samples_after(step, samples_per_step(config))
    matters = what_matters(config, schedule.train_rows)
    return {
        "step": step,
        "epoch": samples // schedule.train_rows,
        "samples": samples,
        "train_rows": schedule.train_rows,
        "first_weights": first_weights,
        "saved_at": time.time(),
        "fingerprint": hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest(),
        "matters": matters,
        "config": json.loads(json.dumps(flat(config.model_dump(mode="json")))),
        "versions": {"python": platform.python_version(), **_versions(VERSIONED)},
    }


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value of then, value of now); a key that one side does not know is one of another version: no difference.

    A value that was not known then, or is not yet now (rows of a hub dataset), is none either.
    """
    shared = [key for key in now if key in then]
    return [
        (key, then[key], now[key])
        for key in shared
        if then[key] != json.loads(json.dumps(now[key])) and not ("(rows)" in key and None in (then[key], now[key]))
    ]


def _short(value: Any) -> str:
    text = "null" if value is None else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _model_content(folder: Path) -> list[Any]:
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:12]
    weights = [path for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    return [digest, sum(path.stat().st_size for path in weights)]


def _data_content(paths: str | Sequence[str] | None) -> Any:
    if paths is None:
        return None
    source = find_source(paths, "data.train_data_paths")
    return str(source) if isinstance(source, HubDataset) else [[file.name, file.stat().st_size] for file in source]
