"""One stream of metrics: to metrics.jsonl always, to TensorBoard, wandb or swanlab by config, and to the terminal.

A metric is a number under a name like ``train/loss``. Backends are imported when they are used.

A run that goes on from a checkpoint goes on in what it wrote before. Steps past the checkpoint are trained and logged
again: metrics.jsonl and TensorBoard drop what an earlier process said of them; wandb has both, at the same value of
``step``; swanlab keeps the first value of a metric at a step. Nothing that is logged later is lost in any of them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlinf_vlm.registry import load_dotted
from rlinf_vlm.types import UserError

TERMINAL_VARIABLE = "RLINF_VLM_TERMINAL"
"""Names the terminal's device when standard output goes through a pipe, as under the launcher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a backend knows of the run. ``resumed_step``: see ``open_backends``."""

    folder: Path
    project: str
    experiment: str
    config: Mapping[str, Any]
    resumed_step: int | None


class Backend(Protocol):
    """Takes the metrics of a step; made of a TrackedRun."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records ``metrics`` at optimizer step ``step``."""

    def close(self) -> None:
        """Writes what is left."""


class JsonLines:
    """``metrics.jsonl``: one object a step; steps that are logged in parts become several lines of one step."""

    def __init__(self, run: TrackedRun) -> None:
        path = run.folder / "metrics.jsonl"
        if path.is_file():
            _keep_lines(path, math.inf if run.resumed_step is None else run.resumed_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, flushed: a killed run keeps what it said."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _keep_lines(path: Path, last_step: float) -> None:
    """Drops lines of steps above ``last_step``, and what a kill or a full disk left of a line."""
    aside = path.with_name(path.name + ".partial")
    with path.open("rb") as old, aside.open("wb") as new:
        new.writelines(line.rstrip(b"\r\n") + b"\n" for line in old if _step_of(line) <= last_step)
        new.flush()
        os.fsync(new.fileno())
    os.replace(aside, path)


def _step_of(line: bytes) -> float:
    """The step of a line of metrics.jsonl; not a number where there is none, which is below nothing."""
    try:
        value = json.loads(line)
    except ValueError:
        return math.nan
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else math.nan


class TensorBoard:
    """Event files under ``tensorboard/``, one a process.

    The records are written here and not by ``tensorboard.summary.Writer``, which can neither mark a restart nor name
    its file: readers take the files in the order of their names.
    """

    def __init__(self, run: TrackedRun) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        self._records = RecordWriter(_next_event_file(run.folder / "tensorboard").open("xb"))
        self._write(file_version="brain.Event:2")
        if run.resumed_step is not None:
            # Readers drop the events from this step on that stand before a start mark. Twice, because the server takes
            # the first mark that it meets for the start of the run, and drops nothing there.
            for _ in range(2):
                self._write(step=run.resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric, flushed."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        """Closes the event file."""
        self._records.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def _next_event_file(folder: Path) -> Path:
    """An event file that sorts behind all others of ``folder``, whatever the clock and the process number say."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (re.search(r"tfevents\.(\d{10})\.", path.name) for path in folder.iterdir())
    number = max([int(time.time()), *(int(name[1]) + 1 for name in names if name)])
    return folder / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"


class Wandb:
    """Weights & Biases (extra ``wandb``).

    The optimizer step is a metric, ``step``, that all charts are drawn over. As wandb's own step it would have to rise
    from call to call, and a resumed run's steps up to the last one before it were refused.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.experiment,
            dir=str(run.folder),
            config=dict(run.config),
            id=_run_id(run, "wandb_run_id"),
            resume=None if run.resumed_step is None else "allow",
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step in one call."""
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class SwanLab:
    """SwanLab (extra ``swanlab``). Its server goes on with a run; its local mode starts a new one of the same id."""

    def __init__(self, run: TrackedRun) -> None:
        import swanlab

        self._run = swanlab.init(
            project=run.project,
            experiment_name=run.experiment,
            logdir=str(run.folder / "swanlab"),
            config=dict(run.config),
            id=_run_id(run, "swanlab_run_id"),
            resume="allow",  # without it, an id of our own is refused
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step in one call."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def _run_id(run: TrackedRun, name: str) -> str:
    """What the run folder's file ``name`` says where the run goes on, else a new id, kept before anything is sent."""
    path = run.folder / name
    goes_on = run.resumed_step is not None and path.is_file()
    known = path.read_text(encoding="utf-8").strip() if goes_on else ""
    if known:
        return known
    new = uuid.uuid4().hex[:21]  # the length of swanlab's own ids
    path.write_text(new + "\n", encoding="utf-8")
    return new


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
    names: Sequence[str],
    log_path: Path,
    project: str,
    experiment: str,
    config: Mapping[str, Any],
    *,
    resumed_step: int | None = None,
) -> list[Backend]:
    """metrics.jsonl and the named backends.

    ``resumed_step``: finished optimizer steps of the checkpoint that the run goes on from, in the same ``log_path``
    (0: from its beginning). None opens a run of its own, which adds to what is in the folder.
    """
    run = TrackedRun(folder=log_path, project=project, experiment=experiment, config=config, resumed_step=resumed_step)
    backends: list[Backend] = [JsonLines(run)]
    backends += [load_dotted(BACKENDS[name])(run) for name in names]
    return backends


class Terminal:
    """What a person sees: a progress line on a terminal, else one plain line a step on standard output.

    On a terminal behind a pipe (the launcher's tee) the progress line goes to the terminal's device and the plain lines
    to ``log_file``, so the run's log is the same either way.
    """

    def __init__(self, total_steps: int, log_file: Path | None, *, finished_steps: int = 0) -> None:
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
        self._task = (
            self._progress.add_task("train", total=total_steps, completed=finished_steps, shown="")
            if self._progress
            else None
        )

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
