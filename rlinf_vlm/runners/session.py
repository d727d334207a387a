"""The run folder and the steps of a run: when to evaluate, when to save, where metrics go.

    logs/<time>/  config.yaml  plan.txt  run.log  metrics.jsonl  tensorboard/  eval/step_N.jsonl
                  <experiment_name>/checkpoints/global_step_N/actor/

Step numbers count finished optimizer steps: the first step is logged as 1, and global_step_1 holds its weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import yaml

from rlinf_vlm.config.schema import Config
from rlinf_vlm.evaluation.answers import EvalRecord, summarise
from rlinf_vlm.tracking import Backend, Terminal, open_backends
from rlinf_vlm.types import UserError


class Session:
    """One run in an existing run folder: a context manager that closes what it opened."""

    def __init__(self, config: Config, plan_text: str) -> None:
        self._runner = config.runner
        logger = config.runner.logger
        self.folder = Path(logger.log_path)
        self.checkpoints = self.folder / logger.experiment_name / "checkpoints"
        tree = config.model_dump(mode="json")
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        (self.folder / "plan.txt").write_text(plan_text + "\n", encoding="utf-8")
        self._backends: list[Backend] = open_backends(
            logger.logger_backends, self.folder, logger.project_name, logger.experiment_name, tree
        )
        self._terminal: Terminal | None = None

    def __enter__(self) -> Session:
        """Nothing more to open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the backends, whatever ended the run."""
        for backend in self._backends:
            backend.close()

    def steps(self, total: int) -> Iterator[int]:
        """0 .. total - 1, with a progress line."""
        with Terminal(total, self.folder / "run.log") as self._terminal:
            yield from range(total)
        self._terminal = None

    def say(self, line: str) -> None:
        """A line for the person who watches."""
        if self._terminal is not None:
            self._terminal.say(line)
            return
        with Terminal(0, self.folder / "run.log") as terminal:
            terminal.say(line)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the step with index ``step``."""
        self._log(step + 1, metrics)
        assert self._terminal is not None, "steps are logged while they are iterated"
        shown = (
            f"loss {metrics['train/loss']:.4f}  grad {metrics['train/grad_norm']:.3f}  lr {metrics['train/lr']:.2e}  "
            f"{metrics['perf/tokens_per_second']:,.0f} tok/s"
        )
        self._terminal.step(step + 1, shown)

    def evaluates_after(self, step: int, total: int) -> bool:
        """Whether the evaluation set is due after step index ``step`` of ``total``."""
        return _due(self._runner.val_check_interval, step, total)

    def saves_after(self, step: int, total: int) -> bool:
        """Whether a checkpoint is due after step index ``step`` of ``total``."""
        return _due(self._runner.save_interval, step, total)

    def log_evaluation(self, finished_steps: int, records: Sequence[EvalRecord], seconds: float) -> dict[str, float]:
        """Writes one line a row and logs the summary, after ``finished_steps`` optimizer steps."""
        folder = self.folder / "eval"
        folder.mkdir(exist_ok=True)
        with (folder / f"step_{finished_steps}.jsonl").open("w", encoding="utf-8") as file:
            for record in sorted(records, key=lambda record: record.row):
                file.write(json.dumps(record.as_json(), ensure_ascii=False) + "\n")
        metrics = {**summarise(records), "time/eval": seconds}
        if not metrics["eval/samples"]:
            raise UserError(f"none of the {len(records)} evaluation rows can be used ({records[0].error})")
        self._log(finished_steps, metrics)
        shown = "  ".join(
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in metrics.items()
        )
        self.say(f"evaluation after step {finished_steps}: {shown}")
        return metrics

    def log_saved(self, finished_steps: int, folder: Path, seconds: float) -> None:
        """Records a finished checkpoint."""
        self._log(finished_steps, {"time/save": seconds})
        self.say(f"checkpoint after step {finished_steps}: {folder}")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for backend in self._backends:
            backend.log(step, metrics)


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
