from __future__ import annotations

import io
import json
import sys

import pytest

from rlinf_vlm.tracking import TERMINAL_VARIABLE, Terminal, check_backends, open_backends
from rlinf_vlm.types import UserError


def test_metrics_go_to_the_file_and_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    backends = open_backends(["tensorboard"], tmp_path, "project", "run", {})
    for step, loss in [(1, 2.5), (2, 1.25)]:
        for backend in backends:
            backend.log(step, {"train/loss": loss})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 1.25}], "flushed before it is closed"
    for backend in backends:
        backend.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["tensors"] == ["train/loss"] or events.Tags()["scalars"] == ["train/loss"]


def test_a_second_run_in_the_folder_adds_to_the_file(tmp_path):
    for step in (1, 2):
        (backend,) = open_backends([], tmp_path, "p", "r", {})
        backend.log(step, {"x": 0.0})
        backend.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_backend_that_is_not_installed_is_told_before_the_run():
    check_backends(["tensorboard"])
    with pytest.raises(UserError, match=r"logger_backends=\['swanlab_'\].*pip install -e '\.\[swanlab_\]'"):
        check_backends(["swanlab_"])


def test_plain_lines_without_a_terminal(tmp_path, monkeypatch):
    monkeypatch.delenv(TERMINAL_VARIABLE, raising=False)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with Terminal(2, tmp_path / "run.log") as terminal:
        terminal.step(1, "loss 2.5000")
        terminal.say("evaluation [done]")
        terminal.step(2, "loss 1.2500")
    assert out.getvalue() == "step 1 loss 2.5000\nevaluation [done]\nstep 2 loss 1.2500\n"
    assert not (tmp_path / "run.log").exists(), "standard output is the log already"


def test_behind_a_pipe_the_terminal_gets_the_progress_and_the_log_the_lines(tmp_path, monkeypatch):
    device = tmp_path / "tty"
    monkeypatch.setenv(TERMINAL_VARIABLE, str(device))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with Terminal(2, tmp_path / "run.log") as terminal:
        terminal.step(1, "loss 2.5000")
        terminal.say("saved")
    assert (tmp_path / "run.log").read_text() == "step 1 loss 2.5000\nsaved\n"
    assert "saved" in device.read_text() and out.getvalue() == ""
