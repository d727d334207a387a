"""The table of a few runs' accuracies, from their metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rl_curve import main, read_curve


def write_run(folder: Path, accuracies: list[float]) -> Path:
    folder.mkdir()
    lines = []
    for number, accuracy in enumerate(accuracies):
        bounds = {"eval/accuracy_low": accuracy - 0.05, "eval/accuracy_high": accuracy + 0.05}
        lines.append({"step": 10 * number, "eval/accuracy": accuracy, **bounds, "time/eval": 30.0})
        lines.append({"step": 10 * number + 1, "train/loss": 0.0, "time/step": 60.0})
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return folder


def test_first_and_last_evaluation_with_their_intervals(tmp_path, capsys):
    run = write_run(tmp_path / "seed1", [0.25, 0.4, 0.5])
    curve = read_curve(run)
    assert curve.steps == (0, 10, 20)
    assert curve.minutes == pytest.approx(4.5)
    assert main([str(run), "--markdown"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "seed1",
        "0.250 [0.200, 0.300]",
        "0.500 [0.450, 0.550]",
        "-",
        "-",
        "20",
        "4.5",
    ]


def test_a_run_without_evaluations_is_a_mistake(tmp_path, capsys):
    assert main([str(write_run(tmp_path / "a", [0.5]))]) == 2
    assert "1 evaluations, a curve needs two" in capsys.readouterr().err
