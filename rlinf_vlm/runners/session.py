"""The run folder and the steps of a run: when to evaluate, when to save, where metrics go.

    logs/<time>/  config.yaml  plan.txt  run.log  metrics.jsonl  tensorboard/  eval/step_N.jsonl  eval/test_step_N.jsonl
                  <experiment_name>/checkpoints/global_step_N/
                  config.2.yaml  plan.2.txt  run.2.log          of the second start in the folder, and so on

Step numbers count finished optimizer steps: the first step is logged as 1, and global_step_1 holds its weights.
The first SIGTERM asks the training to save and end (``stopping``); a second one ends it at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import yaml

from rlinf_vlm.checkpoints import Checkpoint
from rlinf_vlm.config.schema import Config, RunnerConfig
from rlinf_vlm.evaluation.behaviour import BEHAVIOUR
from rlinf_vlm.evaluation.files import evaluation_file
from rlinf_vlm.runners.resume import AUTO
from rlinf_vlm.runners.run_folder import history, numbered
from rlinf_vlm.runners.stopping import GracefulStop
from rlinf_vlm.tracking import Backend, Terminal, open_backends
from rlinf_vlm.types import UserError


class RowRecord(Protocol):
    """What an evaluation found for one row."""

    @property
    def row(self) -> int:
        """Its number."""

    @property
    def error(self) -> str | None:
        """Why it could not be used; None where it was."""

    def as_json(self) -> dict[str, Any]:
        """The line of the per-sample file."""


class Session:
    """One run in an existing run folder: a context manager that closes what it opened."""

    def __init__(self, config: Config, plan_text: str, *, start: int = 1, resumed: Checkpoint | None = None) -> None:
        """``start``: number of this start in the run folder; ``resumed``: the checkpoint that the run goes on from."""
        self._runner = config.runner
        logger = config.runner.logger
        self.folder = Path(logger.log_path)
        self.checkpoints = checkpoints_of(config)
        goes_on_here = resumed is not None and resumed.run_folder == self.folder.resolve()
        self._resumed_step = resumed.step if resumed is not None and goes_on_here else None
        tree = config.model_dump(mode="json")
        self.run_log = self.folder / numbered("run.log", start)
        self._write(numbered("config.yaml", start), yaml.safe_dump(tree, sort_keys=False))
        self._write(numbered("plan.txt", start), plan_text + "\n")
        trains = config.data.train_data_paths is not None
        self._backends: list[Backend] = open_backends(
            logger.logger_backends,
            self.folder,
            logger.project_name,
            logger.experiment_name,
            tree,
            # auto without a checkpoint: the run was killed before its first one, and starts again here.
            resumed_step=0 if resumed is None and trains and config.runner.resume_dir == AUTO else self._resumed_step,
        )
        self._terminal: Terminal | None = None
        self._resumed = resumed
        self._last_saved: Path | None = None
        self._stop = GracefulStop()

    def __enter__(self) -> Session:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the backends, whatever ended the run; a run that failed says where it can go on."""
        self._stop.restore()
        with suppress(OSError):  # a full disk is told by the error that it caused
            if error is not None and self._last_saved is not None:
                self.say(f"last finished checkpoint: {self._last_saved} (runner.resume_dir goes on from there)")
        for backend in self._backends:
            backend.close()

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM has asked the training to end."""
        return self._stop.asked

    def steps(self, start: int, total: int) -> Iterator[int]:
        """start .. total - 1, with a progress line, until the training is asked to stop."""
        self._stop.listen()
        if self._resumed is not None:
            self._last_saved = self._resumed.folder  # known to be usable by now
        with Terminal(total, self.run_log, finished_steps=start) as self._terminal:
            for step in range(start, total):
                yield step
                if self.stopping:
                    break
        self._terminal = None

    def history(self, name: str) -> dict[int, float]:
        """Step -> value of the metric ``name``, of all starts of the run."""
        return history(self.folder, name)

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        if self._terminal is not None:
            self._terminal.say(line)
            return
        with Terminal(0, self.run_log) as terminal:
            terminal.say(line)

    def log_step(self, step: int, metrics: Mapping[str, float], shown: str) -> None:
        """Metrics of the step with index ``step``; ``shown``: what the progress line says of it."""
        self._log(step + 1, metrics)
        assert self._terminal is not None, "steps are logged while they are iterated"
        self._terminal.step(step + 1, shown)

    def evaluates_after(self, step: int, total: int) -> bool:
        """Whether the evaluation set is due after step index ``step`` of ``total``; not while the run is to stop."""
        return _due(self._runner.val_check_interval, step, total) and not self.stopping

    def saves_after(self, step: int, total: int) -> bool:
        """Whether a checkpoint is due after step index ``step`` of ``total``, or because the run is to stop."""
        return _due(self._runner.save_interval, step, total) or (self.stopping and self._runner.save_interval > 0)

    def owes_evaluation(self, total: int) -> bool:
        """Whether the run was killed after it saved and before it evaluated, where both were due."""
        step = self._resumed_step
        return step is not None and owes_evaluation(self._runner, self.folder, step, total)

    def log_evaluation(
        self, finished_steps: int, records: Sequence[RowRecord], metrics: Mapping[str, float], split: str = "eval"
    ) -> None:
        """Writes one line a row and logs the summary, after ``finished_steps`` optimizer steps.

        split: what was evaluated, the evaluation rows or the test rows; their metrics begin with it. Raises UserError
        when no row could be used (eval/samples).
        """
        file_of_rows = evaluation_file(self.folder, split, finished_steps)
        file_of_rows.parent.mkdir(exist_ok=True)
        with file_of_rows.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for record in sorted(records, key=lambda record: record.row):
                file.write(json.dumps(record.as_json(), ensure_ascii=False) + "\n")
        noun = {"eval": "evaluation"}.get(split, split)
        if not metrics[f"{split}/samples"]:
            raise UserError(f"none of the {len(records)} {noun} rows can be used ({records[0].error})")
        self._log(finished_steps, metrics)
        shown = "  ".join(
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}"
            for name, value in metrics.items()
            if not name.endswith(("_low", "_high", *BEHAVIOUR))  # bounds and the like are for the curves
        )
        self.say(f"{noun} after step {finished_steps}: {shown}")

    def log_saving(self, finished_steps: int, seconds: float) -> None:
        """Records how long the training waited for a checkpoint to begin."""
        self._log(finished_steps, {"time/save": seconds})

    def log_saved(self, finished_steps: int, folder: Path, seconds: float) -> None:
        """Records a checkpoint that was finished when the run was at ``finished_steps``."""
        self._last_saved = folder
        self._log(finished_steps, {"time/save_write": seconds})
        self.say(f"checkpoint written in {seconds:.1f} s: {folder}")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for backend in self._backends:
            backend.log(step, metrics)


def checkpoints_of(config: Config) -> Path:
    """Where the run's checkpoints stand."""
    logger = config.runner.logger
    return Path(logger.log_path) / logger.experiment_name / "checkpoints"


def owes_evaluation(runner: RunnerConfig, folder: Path, step: int, total: int) -> bool:
    """Whether the run in ``folder`` ended after it saved ``step`` and before it evaluated, where both were due."""
    return step > 0 and _due(runner.val_check_interval, step - 1, total) and step not in history(folder, "eval/samples")


def _due(interval: int, step: int, total: int) -> bool:
    """Every ``interval`` finished steps and after the last one; never for -1."""
    return interval > 0 and ((step + 1) % interval == 0 or step + 1 == total)


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._start
