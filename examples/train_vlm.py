"""The entry of every run: composes the YAML with Hydra, validates it, and hands it to the runner.

    python examples/train_vlm.py --config-path examples/config --config-name custom_sft_vlm [hydra overrides ...]

The only file that imports Hydra. Exit status: 0 done, 1 failed, 2 a mistake in the config, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlinf_vlm.config.load import load_config
from rlinf_vlm.runners.launch import launch
from rlinf_vlm.types import RunStopped, UserError, WorkerFailure

ROOT = Path(__file__).resolve().parent.parent
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""What is no fault of the program when it writes: told in one line."""
PLACEMENT = "cluster.component_placement"
UNTRAINED = {"geometry_rl/warm/model": "geometry_rl/model", "geometry_tool/warm/model": "geometry_tool/model"}
"""Models that a demo trains -> what they are trained from."""
DEMOS = {
    "geometry_tool/warm/": "tool_warmup",
    "geometry_tool/": "geometry_tool",
    "geometry_rl/warm/": "warmup",
    "geometry_rl/": "geometry_rl",
    "geometry/": "geometry",
    "": "easy_vqa",
}
"""What a path in the folder of the demos begins with, the longest first -> what makes it."""
KEPT_UP_TO_DATE = ("warmup", "tool_warmup")
"""Demos that are made anew, with what they are made from, when they were made from other settings."""
REPORT_S = 600
"""Seconds that the report may take."""
CHILD_ENDS_S = 30
"""Seconds that a command has to end after SIGTERM."""


def main(arguments: Sequence[str]) -> int:
    """Runs one config; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train or evaluate a vision-language model.")
    parser.add_argument("--config-path", default=str(ROOT / "examples" / "config"), help="folder of the YAML files")
    parser.add_argument("--config-name", default="custom_sft_vlm", help="name in that folder, or path of a YAML file")
    parser.add_argument("--log-path", help="run folder, unless an override names runner.logger.log_path")
    parser.add_argument("overrides", nargs="*", help="key=value, as Hydra reads them")
    options = parser.parse_args(arguments)
    sigterm = Sigterm()
    signal.signal(signal.SIGTERM, sigterm.end)
    try:
        tree = compose_config(options.config_path, options.config_name, options.overrides)
        made_up = bool(options.log_path) and not any("runner.logger.log_path=" in text for text in options.overrides)
        if made_up:
            set_log_path(tree, options.log_path)
        make_missing_demo(tree)
        config = load_config(tree)
        launch(config, folder_is_new=made_up, at_end=write_report if config.runner.report else None)
    except UserError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        sys.stderr.write(f"error: {error.filename or 'the run folder'}: {error.strerror or error}\n")
        return 1
    except WorkerFailure as error:
        # The details can be long: who reads only the end has to find what matters there.
        sys.stderr.write(f"{error.details.rstrip()}\nerror: {error.headline}\n")
        return 1
    except RunStopped as stop:
        sys.stderr.write(f"stopped by SIGTERM {stop}\n")
        return 143
    except KeyboardInterrupt:
        if sigterm.came:
            sys.stderr.write("stopped by SIGTERM\n")
            return 143
        sys.stderr.write("stopped by Ctrl-C\n")
        return 130
    return 0


def compose_config(folder: str, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The YAML ``name`` in ``folder`` (or at the path ``name``) with ``overrides``, as a plain dict.

    Raises UserError for a missing or broken YAML, an override that cannot be read, or an interpolation without a value.
    """
    if "/" in name or Path(name).is_file():
        if not Path(name).is_file() or not name.endswith(".yaml"):
            raise UserError(f"config {name!r}: no such file; give the path of a file that ends in .yaml, or a name")
        folder, name = str(Path(name).parent), Path(name).name
    name = name.removesuffix(".yaml")
    directory = Path(folder).resolve()
    if not directory.is_dir():
        raise UserError(f"--config-path={folder!r}: no such folder")
    if not (directory / f"{name}.yaml").is_file():
        known = sorted(path.stem for path in directory.glob("*.yaml"))
        raise UserError(f"config {name!r}: no {name}.yaml in {directory} (there: {', '.join(known) or 'none'})")
    try:
        kept, placement = split_placement([reach_every_field(text, directory) for text in overrides])
        with initialize_config_dir(str(directory), version_base=None):
            composed = compose(name, overrides=kept)
        if placement is not None:
            OmegaConf.update(composed, PLACEMENT, placement, merge=False, force_add=True)
        return OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except yaml.YAMLError as error:
        raise UserError(f"config {name!r} is not YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"config {name!r}: {' '.join(str(error).split())}") from error


def split_placement(overrides: Sequence[str]) -> tuple[list[str], dict[str, Any] | None]:
    """The overrides without the last that sets the whole placement, and what it sets.

    A placement is a whole: merged with the YAML's, as Hydra merges maps, ``{actor: 0, rollout: 1}`` would place what
    stands there as "actor,rollout" twice.
    """
    kept: list[str] = []
    placement: dict[str, Any] | None = None
    for text in overrides:
        override = OverridesParser.create().parse_override(text)
        if override.key_or_group == PLACEMENT and isinstance(override.value(), dict):
            placement = override.value()  # type: ignore[assignment]
        else:
            kept.append(text)
    return kept, placement


def set_log_path(tree: dict[str, Any], path: str) -> None:
    """Sets runner.logger.log_path as it is: a folder's name may hold what Hydra's grammar gives a meaning to."""
    runner = tree.get("runner")
    if isinstance(runner, dict) and isinstance(runner.setdefault("logger", {}), dict):
        runner["logger"]["log_path"] = path


def reach_every_field(text: str, directory: Path) -> str:
    """An override that also sets fields that the YAML leaves to their defaults, and placements with commas.

    Hydra refuses a key that the YAML does not hold; the schema knows all keys and refuses the others with a suggestion.
    So ``a.b=1`` becomes ``++a.b=1`` unless ``a.b`` is a group of files. ``PLACEMENT.x=0-1,3`` would be a sweep: quoted.
    """
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"override {text!r}: {reason}; write it as key=value, a special text as key='\"...\"'"
        ) from error
    if not override.key_or_group:
        raise UserError(f"override {text!r} has no key; write it as key=value")
    if override.type is not OverrideType.CHANGE or (directory / str(override.key_or_group)).is_dir():
        return text
    if override.is_sweep_override() and override.key_or_group.startswith(PLACEMENT):
        return f"++{override.get_key_element()}='{text.partition('=')[2]}'"
    _refuse_sweep(override, text)
    return f"++{text}"


def _refuse_sweep(override: Override, text: str) -> None:
    if override.is_sweep_override():
        key, _, value = text.partition("=")
        raise UserError(f"{text}: commas make a list of runs; quote a text ({key}='\"{value}\"') or write [{value}]")


def make_missing_demo(tree: dict[str, Any]) -> None:
    """Makes the demos' data and models when the config points there and they are not there, or no longer up to date.

    A dry run trains no model: it is planned with the untrained one, which has the same shape.
    """
    demo = Path(os.environ.get("RLINF_VLM_DEMO", ".demo"))
    data, model = _block(tree, "data"), _block(_block(tree, "actor"), "model")
    dry = _block(tree, "runner").get("dry_run") is True
    for warm, untrained in UNTRAINED.items():
        if dry and model.get("model_path") == str(demo / warm) and not (demo / warm).is_dir():
            model["model_path"] = str(demo / untrained)
    paths_of = ("train_data_paths", "eval_data_paths", "test_data_paths")
    named = [model.get("model_path"), *(data.get(name) for name in paths_of)]
    inside = [text.removeprefix(f"{demo}/") for text in named if isinstance(text, str) and text.startswith(f"{demo}/")]
    for folder, name in DEMOS.items():
        paths = [path for path in inside if path.startswith(folder)]
        inside = [path for path in inside if path not in paths]
        missing = [path for path in paths if not (demo / path).exists()]
        if missing or (paths and name in KEPT_UP_TO_DATE and not dry):
            script = ROOT / "toolkits" / "data" / "make_demo.py"
            status = run_child([sys.executable, str(script), name, "--out", str(demo)])
            if status:
                raise UserError(
                    f"{demo / paths[0]} could not be made by {script.name} {name} (status {status}, see above)"
                )


def write_report(folder: Path) -> None:
    """Writes the report into the run folder, in a process of its own: what goes wrong with it is told in one line and
    is no fault of the run."""
    command = [sys.executable, str(ROOT / "toolkits" / "report" / "make_report.py"), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=REPORT_S, check=False)
        said, trouble = done.stdout.strip(), done.stderr.strip() if done.returncode else ""
        if done.returncode and not trouble:
            trouble = f"it ended with status {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said, trouble = "", str(error)
    if trouble:
        last = trouble.rpartition("\n")[2].removeprefix("error: ")
        sys.stderr.write(f"warning: no report of the run ({last}); the run itself is complete\n")
    else:
        sys.stdout.write(f"{said}\n")


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Runs a command to its end; returns its exit status. Left by an exception, it ends the command first."""
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException as reason:
        # Ctrl-C goes to the whole group: the command ends by itself. SIGTERM may have come here alone.
        if type(reason) is not KeyboardInterrupt or not _ends(process):
            process.terminate()
            if not _ends(process):
                process.kill()
        raise


def _ends(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=CHILD_ENDS_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _block(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that the cluster is closed and no process stays."""


class Sigterm:
    """Ends the run on SIGTERM.

    That it came is kept here: where Ray waits, it raises a KeyboardInterrupt of its own in place of the handler's.
    """

    def __init__(self) -> None:
        self.came = False

    def end(self, number: int, frame: object) -> None:
        """The handler."""
        self.came = True
        raise Terminated


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
