"""The launchers (a stand-in for Python says what it was given), and which demos the entry makes for which config."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import train_vlm
from examples.train_vlm import UserError, compose_config, main, make_missing_demo, run_child

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@"
echo "demo: $RLINF_VLM_DEMO"
exit 7
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the launchers, so that logs are written there, and the stand-in."""
    root = tmp_path / "a checkout"
    (root / "examples").mkdir(parents=True)
    for script in (ROOT / "examples").glob("*.sh"):
        shutil.copy(script, root / "examples")
    python = root / "python"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return root


def launched(root: Path, script: str, *arguments: str) -> tuple[int, list[str]]:
    environment = {**os.environ, "RLINF_VLM_PYTHON": str(root / "python")}
    command = ["bash", str(root / "examples" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd="/", timeout=30)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("script", "default"), [("run_vlm_sft.sh", "custom_sft_vlm"), ("run_vlm_rl.sh", "geometry_grpo")]
)
@pytest.mark.parametrize(
    ("arguments", "config", "rest"),
    [
        ([], None, []),
        (["actor.seed=7", "~data.max_pixels"], None, ["actor.seed=7", "~data.max_pixels"]),
        (["++runner.max_steps=3"], None, ["++runner.max_steps=3"]),
        (["geo3k_grpo"], "geo3k_grpo", []),
        (["my configs/a.yaml", "data.prompt_suffix=a b"], "my configs/a.yaml", ["data.prompt_suffix=a b"]),
    ],
    ids=["nothing", "overrides", "added", "name", "path"],
)
def test_config_and_overrides_are_handed_on(
    checkout: Path, script: str, default: str, arguments: list[str], config: str | None, rest: list[str]
) -> None:
    status, lines = launched(checkout, script, *arguments)
    assert status == 7, "the exit status is not the run's"
    (log,) = (checkout / "logs").iterdir()
    assert lines[0] == f"logs: {log}"
    folder = str(checkout / "examples")
    assert lines[1:] == [
        f"{folder}/train_vlm.py",
        *("--config-path", f"{folder}/config", "--config-name", config or default, "--log-path", str(log), *rest),
        f"demo: {checkout}/.demo",
    ]
    assert (log / "run.log").read_text().splitlines() == lines[1:]


def test_each_run_has_a_folder_of_its_own(checkout: Path) -> None:
    logs = {launched(checkout, "run_vlm_rl.sh")[1][0] for _ in range(3)}
    assert len(logs) == 3 == len(list((checkout / "logs").iterdir()))


# the demo is made when it is not there


def demo_tree(demo: Path, name: str, *overrides: str) -> dict[str, object]:
    return compose_config(str(ROOT / "examples" / "config"), name, list(overrides))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which demos were asked for, in order; nothing is made."""
    asked: list[str] = []

    def note(command: list[str]) -> int:
        assert command[1].endswith("toolkits/data/make_demo.py") and command[3:] == ["--out", str(tmp_path)]
        asked.append(command[2])
        return 0

    monkeypatch.setenv("RLINF_VLM_DEMO", str(tmp_path))
    monkeypatch.setattr(train_vlm, "run_child", note)
    return asked


@pytest.mark.parametrize(
    ("name", "overrides", "demos"),
    [
        ("custom_sft_vlm", [], ["easy_vqa"]),
        ("geometry_warmup", [], ["geometry_rl"]),
        ("geometry_grpo", [], ["warmup", "geometry_rl"]),
        ("geometry_grpo", ["actor.model.model_path=/mine", "data.eval_data_paths=null"], ["geometry_rl"]),
        ("geometry_grpo", ["runner.dry_run=true"], ["geometry_rl"]),
        ("geo3k_grpo", [], []),
        ("geometry_tool_warmup", [], ["geometry_tool"]),
        ("geo3k_grpo_multi_turn", [], ["tool_warmup", "geometry_tool"]),
        ("geo3k_grpo_multi_turn", ["runner.dry_run=true"], ["geometry_tool"]),
        ("geo3k_grpo_multi_turn", ["setup=qwen3_vl_2b"], []),
    ],
)
def test_what_a_config_names_is_made(
    made: list[str], tmp_path: Path, name: str, overrides: list[str], demos: list[str]
) -> None:
    make_missing_demo(demo_tree(tmp_path, name, *overrides))
    assert made == demos


def test_a_dry_run_trains_nothing_and_plans_with_the_untrained_model(made: list[str], tmp_path: Path) -> None:
    tree = demo_tree(tmp_path, "geometry_grpo", "runner.dry_run=true")
    make_missing_demo(tree)
    assert tree["actor"]["model"]["model_path"] == f"{tmp_path}/geometry_rl/model"
    for path in ("warm/model", "train.parquet", "test.parquet"):
        (tmp_path / "geometry_rl" / path).mkdir(parents=True)
    made.clear()
    tree = demo_tree(tmp_path, "geometry_grpo", "runner.dry_run=true")
    make_missing_demo(tree)
    assert tree["actor"]["model"]["model_path"] == f"{tmp_path}/geometry_rl/warm/model"
    assert made == []


def test_what_is_there_is_made_anew_only_by_those_who_can_tell(made: list[str], tmp_path: Path) -> None:
    """easy-VQA is left alone without a question; what RL starts from is asked whether it is up to date."""
    for path in ("geometry_rl/warm/model", "geometry_rl/train.parquet", "geometry_rl/test.parquet", "model"):
        (tmp_path / path).mkdir(parents=True)
    for part in ("train", "test"):
        (tmp_path / "easy_vqa" / "messages" / f"{part}.parquet").mkdir(parents=True)
    make_missing_demo(demo_tree(tmp_path, "custom_sft_vlm"))
    assert made == []
    make_missing_demo(demo_tree(tmp_path, "geometry_warmup"))
    assert made == ["geometry_rl"], "its model is missing"
    (tmp_path / "geometry_rl" / "model").mkdir()
    made.clear()
    make_missing_demo(demo_tree(tmp_path, "geometry_warmup"))
    assert made == [], "rows that were made by hand would be replaced while they are trained on"
    make_missing_demo(demo_tree(tmp_path, "geometry_grpo"))
    assert made == ["warmup"]


def test_a_demo_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLINF_VLM_DEMO", str(tmp_path / "demo"))
    (tmp_path / "demo" / "geometry_rl").mkdir(parents=True)
    (tmp_path / "demo" / "geometry_rl" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"geometry_rl/train.parquet could not be made by make_demo.py geometry_rl"):
        make_missing_demo(demo_tree(tmp_path, "geometry_warmup", "actor.model.model_path=/mine"))
    assert (tmp_path / "demo" / "geometry_rl" / "thesis.txt").read_text() == "mine"


# a command that the entry runs


def test_a_child_gives_its_status() -> None:
    assert (
        run_child([sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['WANTED']))"], {"WANTED": "5"}) == 5
    )


CHILD = """
import pathlib, signal, sys, time
def end(number, frame):
    pathlib.Path(sys.argv[1], "ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""
PARENT = """
import signal, sys
from examples.train_vlm import Sigterm, run_child
signal.signal(signal.SIGTERM, Sigterm().end)
run_child([sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


def test_sigterm_to_the_entry_alone_ends_the_child_too(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), CHILD], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=15) != 0
    assert (tmp_path / "ended").exists()


def test_a_missing_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config-name", "geometry_gpro"]) == 2
    assert "geometry_grpo" in capsys.readouterr().err
