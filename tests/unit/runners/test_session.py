"""What a session leaves alone, and in which order a run saves and evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.checkpoints import state_file
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.session import Session
from rlinf_vlm.runners.sft import train
from rlinf_vlm.types import UserError
from tests.small_run import read_jsonl, tree
from tests.unit.test_checkpoints import write

ROWS = 64


def config(base: Path, folder: Path, **changes: Any) -> Config:
    logger = {"log_path": str(folder), "logger_backends": []}
    return load_config(tree(base, runner__logger=logger, **changes))


@pytest.mark.parametrize(("rows", "kept"), [(None, [1, 2]), ("as they are", [])])
def test_an_evaluation_cuts_nothing_off_the_metrics_of_a_run(small_run, tmp_path, rows, kept):
    """A training that starts again drops what was logged before; ``auto`` is no training without training rows."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    changes = {} if rows else {"data__train_data_paths": None}
    with Session(config(small_run, tmp_path, runner__resume_dir="auto", **changes), "plan", start=2):
        pass
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == kept
    assert (tmp_path / "config.2.yaml").is_file() and not (tmp_path / "config.yaml").exists()


class ActorWithABrokenTestRow:
    """Writes a checkpoint when it is waited for; fails when it evaluates."""

    def __init__(self) -> None:
        self.writing: Path | None = None

    def call(self, method: str, *args: Any, wait: bool = False) -> list[Any]:
        if method == "train_step":
            return [{"train/loss": 1.0, "train/grad_norm": 1.0, "train/lr": 1.0, "perf/tokens_per_second": 1.0}]
        if method == "begin_save":
            self.writing = Path(args[0])
        elif method == "finished_save" and wait and self.writing is not None:
            write(self.writing, saved_at=1.0)
            return [1.0]
        elif method == "evaluate":
            raise UserError("row 0: its image does not decode")
        return [None]


def test_a_broken_test_row_does_not_cost_the_training(small_run, tmp_path):
    """The failure ends the processes that write: by then the checkpoint has to be on disk."""
    changed = config(small_run, tmp_path, runner__max_steps=1, runner__save_interval=1, runner__val_check_interval=1)
    with pytest.raises(UserError, match="does not decode"), Session(changed, "plan") as session:
        train(ActorWithABrokenTestRow(), changed, resolve_schedule(changed, ROWS), session)
    assert state_file(session.checkpoints / "global_step_1").is_file()
