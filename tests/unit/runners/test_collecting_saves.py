"""A checkpoint is finished when all ranks have said so, each at its own moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlinf_vlm.config.load import load_config
from rlinf_vlm.runners.saving import Checkpoints


class Ranks:
    """An actor group whose ranks say once when they have finished."""

    def __init__(self, told: list[list[float | None]]) -> None:
        self.told = told
        self.waited: list[bool] = []

    def call(self, method: str, *args: Any, wait: bool = False) -> list[Any]:
        if method == "begin_save":
            return [None, None]
        assert method == "finished_save"
        self.waited.append(wait)
        return self.told.pop(0)


class Log:
    """A session that notes what was saved."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = folder
        self.saved: list[tuple[int, str, float]] = []

    def log_saving(self, step: int, seconds: float) -> None:
        assert seconds >= 0

    def log_saved(self, step: int, folder: Path, seconds: float) -> None:
        self.saved.append((step, folder.name, seconds))


def test_ranks_that_finish_apart_finish_a_checkpoint_together(tmp_path, monkeypatch):
    """Rank 0 has said it at the first question, rank 1 at the second, when rank 0 has nothing more to say."""
    monkeypatch.setattr("rlinf_vlm.runners.saving.describe", lambda *given: {})
    config = load_config(
        {
            "runner": {"task_type": "sft", "max_steps": 3, "logger": {"log_path": str(tmp_path)}},
            "data": {"train_data_paths": "a"},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
        }
    )
    schedule = type("Schedule", (), {"start": type("Start", (), {"step": 0})()})()
    ranks, log = Ranks([[1.5, None], [None, 2.5], [None, None], [0.5, 0.25]]), Log(tmp_path)
    checkpoints = Checkpoints(config, schedule, ranks, log)  # type: ignore[arg-type]
    checkpoints.save(1)
    checkpoints.collect(2)
    assert log.saved == []
    checkpoints.save(2)
    assert log.saved == [(2, "global_step_1", 2.5)]
    checkpoints.collect(3)
    checkpoints.finish(3)
    assert log.saved[1:] == [(3, "global_step_2", 0.5)]
    assert ranks.waited == [False, True, False, True]
