"""Mistakes in a benchmark's options cost no run, and a benchmark that is ended leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import sft_scaling, sft_throughput
from benchmarks.workload import main as workload_main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("given", [["--workers", "-3"], ["--timeout", "-1"], ["--steps", "²"], ["--rows", "0"]])
def test_numbers_are_checked_before_anything_is_started(given, capsys):
    with pytest.raises(SystemExit):
        sft_throughput.main(["--small", *given])
    assert "is not a whole number" in capsys.readouterr().err


def test_other_mistakes_are_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for main, given in (
        (sft_throughput.main, ["--small", "--out", str(tmp_path / "file" / "out.jsonl")]),
        (sft_scaling.main, ["--small", "--gpus", "²"]),
        (workload_main, ["--out", str(tmp_path / "work"), "--rows", "-1"]),
    ):
        assert main(given) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: --") and line.count("\n") == 1


def test_ending_a_benchmark_ends_its_run(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from benchmarks.launching import watch; "
        f"watch(['bash', '-c', 'echo $$; exec sleep 300'], dict(os.environ), open({str(tmp_path / 'out')!r}, 'w'), "
        f"Path({str(tmp_path / 'sign')!r}), 300.0)"
    )
    benchmark = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    out = tmp_path / "out"
    wait_until(lambda: out.is_file() and out.read_text().endswith("\n"))
    run = Path("/proc") / out.read_text().strip()
    assert run.is_dir()
    benchmark.terminate()
    assert benchmark.wait(60) == 143
    assert not run.is_dir()


def wait_until(done: Callable[[], bool]) -> None:
    """Returns once ``done``; fails after a minute."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
