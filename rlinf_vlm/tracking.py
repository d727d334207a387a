"""One stream of metrics: to metrics.jsonl always, to TensorBoard, wandb or swanlab by config, and to the terminal.

A metric is a number under a name like ``train/loss``. Backends are imported when they are used.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlinf_vlm.registry import load_dotted
from rlinf_vlm.types import UserError

TERMINAL_VARIABLE = "RLINF_VLM_TERMINAL"
"""Names the terminal's device when standard output goes through a pipe, as under the launcher."""


class Backend(Protocol):
    """Takes the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records ``metrics`` at optimizer step ``step``."""

    def close(self) -> None:
        """Writes what is left."""


class JsonLines:
    """``metrics.jsonl``: one object a step; steps that are logged in parts become several lines of one step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, flushed: a killed run keeps what it said."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files under ``tensorboard/``."""

    def __init__(self, log_path: Path, project: str, experiment: str, config: Mapping[str, Any]) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(log_path / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class Wandb:
    """Weights & Biases (extra ``wandb``)."""

    def __init__(self, log_path: Path, project: str, experiment: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=project, name=experiment, dir=str(log_path), config=dict(config))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step in one call."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class SwanLab:
    """SwanLab (extra ``swanlab``)."""

    def __init__(self, log_path: Path, project: str, experiment: str, config: Mapping[str, Any]) -> None:
        import swanlab

        self._run = swanlab.init(
            project=project, experiment_name=experiment, logdir=str(log_path / "swanlab"), config=dict(config)
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step in one call."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


BACKENDS = {
    "tensorboard": "rlinf_vlm.tracking:TensorBoard",
    "wandb": "rlinf_vlm.tracking:Wandb",
    "swanlab": "rlinf_vlm.tracking:SwanLab",
}


def check_backends(names: Sequence[str]) -> None:
    """Every backend's package is there. Raises UserError with the command that installs it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"runner.logger.logger_backends={list(names)}: the package {name!r} is not installed; "
                f"pip install -e '.[{name}]', or remove {name} from the list"
            )


def open_backends(
    names: Sequence[str], log_path: Path, project: str, experiment: str, config: Mapping[str, Any]
) -> list[Backend]:
    """metrics.jsonl and the named backends."""
    backends: list[Backend] = [JsonLines(log_path / "metrics.jsonl")]
    backends += [load_dotted(BACKENDS[name])(log_path, project, experiment, config) for name in names]
    return backends


class Terminal:
    """What a person sees: a progress line on a terminal, else one plain line a step on standard output.

    On a terminal behind a pipe (the launcher's tee) the progress line goes to the terminal's device and the plain lines
    to ``log_file``, so the run's log is the same either way.
    """

    def __init__(self, total_steps: int, log_file: Path | None) -> None:
        device = os.environ.get(TERMINAL_VARIABLE)
        self._device: TextIO | None = open(device, "w", encoding="utf-8") if device else None  # noqa: SIM115
        on_terminal = self._device is not None or sys.stdout.isatty()
        self._console = Console(file=self._device or sys.stdout, highlight=False, soft_wrap=True)
        self._log = log_file.open("a", encoding="utf-8") if on_terminal and log_file else None
        self._progress = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
            )
            if on_terminal and total_steps
            else None
        )
        self._task = self._progress.add_task("train", total=total_steps, shown="") if self._progress else None

    def __enter__(self) -> Terminal:
        """Starts the progress line."""
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last state of the line on the screen."""
        if self._progress:
            self._progress.stop()
        for stream in (self._log, self._device):
            if stream:
                stream.close()

    def step(self, step: int, shown: str) -> None:
        """``shown`` after optimizer step ``step``."""
        line = f"step {step} {shown}"
        if self._progress is None or self._task is None:
            self._console.print(line, markup=False)
            return
        self._progress.update(self._task, completed=step, shown=shown)
        self._write(line)

    def say(self, line: str) -> None:
        """A line of its own."""
        self._console.print(line, markup=False)
        self._write(line)

    def _write(self, line: str) -> None:
        if self._log:
            self._log.write(line + "\n")
            self._log.flush()
