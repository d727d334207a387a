"""A run writes its report when it ends, and whatever becomes of the report, the run is what it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from examples import train_vlm
from examples.train_vlm import main, write_report
from tests.small_run import tree


def started(small_run: Path, folder: Path, **changes: object) -> int:
    """The exit status of a run of one step."""
    config = tree(small_run, runner__max_steps=1, data__eval_data_paths=None, **changes)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return main(["--config-name", str(folder / "run.yaml"), "--log-path", str(folder / "log")])


def test_a_run_ends_with_its_report(small_run, tmp_path, capfd):
    assert started(small_run, tmp_path, runner__report=True) == 0
    page = tmp_path / "log" / "report" / "index.html"
    assert "train/loss" in page.read_text()
    assert f"report: {page}" in capfd.readouterr().out


def test_a_folder_without_a_run_is_a_warning(tmp_path, capfd):
    write_report(tmp_path / "gone")
    shown = capfd.readouterr().err
    assert shown.startswith("warning: no report of the run (") and "no such folder" in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('Traceback\\nMemoryError: no room')", "MemoryError: no room"),
        ("import os; os.abort()", "status -6"),
        ("import time; time.sleep(60)", "timed out"),
    ],
)
def test_a_report_that_fails_is_one_line(tmp_path, capfd, monkeypatch, program, said):
    script = tmp_path / "toolkits" / "report" / "make_report.py"
    script.parent.mkdir(parents=True)
    script.write_text(program)
    monkeypatch.setattr(train_vlm, "ROOT", tmp_path)
    monkeypatch.setattr(train_vlm, "REPORT_S", 2)
    write_report(tmp_path)
    shown = capfd.readouterr().err
    assert said in shown and shown.count("\n") == 1


def test_a_program_that_is_not_there_is_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    write_report(tmp_path)
    assert "warning: no report of the run" in capfd.readouterr().err
