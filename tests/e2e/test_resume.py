"""Runs that are stopped, killed or starved and go on: the losses are those of a run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_sft import descendants, evaluations, gone, run, start, steps
from tests.small_run import tree

EXPERIMENT = "resumed"


@pytest.fixture(scope="module")
def config(small_run, tmp_path_factory) -> Path:
    """Six steps, a checkpoint and an evaluation every third."""
    changes = {
        "runner__max_steps": 6,
        "runner__save_interval": 3,
        "runner__val_check_interval": 3,
        "runner__logger": {"experiment_name": EXPERIMENT, "logger_backends": ["tensorboard"]},
        "actor__optim": {"lr": 1e-3, "lr_scheduler": "cosine"},
    }
    path = tmp_path_factory.mktemp("config") / "resumed.yaml"
    path.write_text(yaml.safe_dump(tree(small_run, **changes)))
    return path


def losses(log: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["train/loss"], line["train/grad_norm"]) for line in steps(log)]


def checkpoints(log: Path) -> set[str]:
    return {path.name for path in (log / EXPERIMENT / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """Six steps in one go."""
    log = tmp_path_factory.mktemp("whole") / "log"
    status, output = run(config, log)
    assert status == 0, output
    assert checkpoints(log) == {"global_step_3", "global_step_6"}
    return log


def test_three_and_three_are_six_to_the_last_digit(whole, config, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    horizon = "actor.optim.total_training_steps=6"
    status, output = run(config, first, "runner.max_steps=3", horizon)
    assert status == 0, output
    second.mkdir()
    (second / "run.log").write_text("what the launcher's tee has written so far\n")
    status, output = run(config, second, f"runner.resume_dir={first}/{EXPERIMENT}/checkpoints/global_step_3/")
    assert status == 0, output
    assert losses(first) == losses(whole)
    assert evaluations(first)[-1]["eval/loss"] == evaluations(whole)[-1]["eval/loss"]
    assert not second.exists(), "the run went on in its own folder"
    assert {"config.2.yaml", "plan.2.txt", "run.2.log"} <= {path.name for path in first.iterdir()}
    assert "actor.optim.total_training_steps was 6, is null" in output
    names = sorted(path.relative_to(first) for path in first.rglob("full_weights.pt"))
    assert len(names) == 2
    mine, theirs = ((log / names[1]).read_bytes() for log in (first, whole))
    assert mine == theirs, "the weights after six steps"


def test_a_finished_run_says_so(whole, config, tmp_path):
    before = (whole / "metrics.jsonl").read_text()
    status, output = run(config, tmp_path / "log", f"runner.resume_dir={whole}")
    assert status == 0 and "finished:" in output and "nothing was trained" in output
    assert (whole / "metrics.jsonl").read_text() == before


def test_what_matters_may_not_change(whole, config, tmp_path):
    changes = ["actor.global_batch_size=8", "data.shuffle=false", "actor.micro_batch_size=2", "runner.max_steps=7"]
    resume = f"runner.resume_dir={whole}"
    status, output = run(config, tmp_path / "log", resume, *changes)
    assert status == 2 and "Traceback" not in output
    assert "actor.global_batch_size=8: " in output and "was trained with 16" in output
    assert "data.shuffle=false: " in output and "runner.resume_force=true" in output
    assert "micro_batch_size=2:" not in output


def test_two_ranks_are_resumed_on_one_with_other_micro_batches(whole, config, tmp_path):
    log = tmp_path / "log"
    status, output = run(config, log, "runner.max_steps=3", "cluster.cpu_workers_per_node=2")
    assert status == 0, output
    status, output = run(
        config, log, "runner.resume_dir=auto", "actor.micro_batch_size=8", "runner.logger.log_path=" + str(log)
    )
    assert status == 0, output
    found, expected = losses(log), losses(whole)
    assert [step for step, *_ in found] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss, _ in found[:1]] == pytest.approx([loss for _, loss, _ in expected[:1]], rel=1e-6)


def test_forced_onto_another_batch_every_row_is_still_read_once(whole, config, tmp_path):
    """48 samples are behind the checkpoint of step 3; the two epochs of 64 rows that are asked for end at 128."""
    log = tmp_path / "log"
    changes = ["actor.global_batch_size=8", "runner.resume_force=true", "runner.max_steps=-1", "runner.max_epochs=2"]
    resume = f"runner.resume_dir={whole}/{EXPERIMENT}/checkpoints/global_step_3"
    status, output = run(config, log, resume, f"runner.logger.log_path={log}", *changes)
    assert status == 0, output
    assert [line["train/samples"] for line in steps(log)] == [8] * 10
    assert steps(log)[0]["step"] == 4


def test_sigterm_saves_and_the_run_goes_on(whole, config, tmp_path):
    log = tmp_path / "log"
    process = start(config, log, f"runner.logger.log_path={log}", "runner.save_interval=100")
    wait_for(lambda: (log / "metrics.jsonl").exists() and len(steps(log)) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)  # to all processes, as schedulers and ``timeout`` do
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    (saved,) = checkpoints(log)
    done = int(saved.rpartition("_")[2])
    assert f"stopped by SIGTERM after step {done} of 6" in output and done < 6
    status, output = run(config, log, "runner.resume_dir=auto", f"runner.logger.log_path={log}")
    assert status == 0, output
    assert losses(log) == losses(whole)


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize("victim", ["driver", "rank"])
def test_killed_while_it_saves(whole, config, tmp_path, victim):
    log = tmp_path / "log"
    folder = log / EXPERIMENT / "checkpoints"
    process = start(
        config, log, f"runner.logger.log_path={log}", "runner.save_interval=1", "cluster.cpu_workers_per_node=2"
    )
    wait_for(lambda: (folder / "global_step_2").exists() and any(folder.glob("*.partial-*")), process)
    below = descendants(process.pid)
    ranks = [pid for pid in below if b"RankHost" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(process.pid if victim == "driver" else min(ranks), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if victim == "driver" else 1), output
    if victim == "rank":
        assert f"last finished checkpoint: {folder}/global_step_" in output
    gone(below)
    last = max(int(name.rpartition("_")[2]) for name in checkpoints(log) if ".partial" not in name)
    status, output = run(config, log, "runner.resume_dir=auto", f"runner.logger.log_path={log}")
    assert status == 0, output
    assert f"goes on after {folder}/global_step_{last} " in output
    assert [step for step, *_ in losses(log)] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss, _ in losses(log)] == pytest.approx([loss for _, loss, _ in losses(whole)], rel=1e-5)
    assert not any(".partial" in name for name in checkpoints(log)), "what was half-written is cleared away"


def test_a_disk_without_room(config, tmp_path):
    """8 MiB hold the first checkpoint (5.4 MiB), not the second."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], check=True)
    try:
        status, output = run(config, disk / "log", f"runner.logger.log_path={disk}/log", "runner.save_interval=2")
        assert status == 2 and "Traceback" not in output, output
        assert "global_step_4 could not be written" in output and "MiB are free" in output
        assert f"last finished checkpoint: {disk}/log/{EXPERIMENT}/checkpoints/global_step_2" in output
        assert checkpoints(disk / "log") == {"global_step_2"}
        again = ["runner.resume_dir=auto", "runner.save_interval=-1", f"runner.logger.log_path={disk}/log"]
        status, output = run(config, disk / "log", *again)
        assert status == 0, output
        assert [step for step, *_ in losses(disk / "log")] == [1, 2, 3, 4, 5, 6]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_only_the_newest_and_the_best_are_kept(config, tmp_path):
    log = tmp_path / "log"
    keep = ["runner.keep_last=1", "runner.keep_best=train/loss", "runner.save_interval=1", "actor.optim.lr=0.03"]
    status, output = run(config, log, *keep, "runner.logger.logger_backends=[]", "runner.save_full_weights=false")
    assert status == 0, output
    by_loss = {step: loss for step, loss, _ in losses(log)}
    best = min(by_loss, key=by_loss.get)
    assert checkpoints(log) == {f"global_step_{step}" for step in {best, 6}}
    assert not list(log.rglob("full_weights.pt"))


def test_a_checkpoint_is_evaluated_without_an_optimizer(whole, config, tmp_path):
    expected = {line["step"]: line for line in evaluations(whole)}
    folder = whole / EXPERIMENT / "checkpoints" / "global_step_3"
    sources = [f"runner.resume_dir={folder}", f"runner.ckpt_path={folder}/actor/model_state_dict/full_weights.pt"]
    for number, source in enumerate(sources):
        log = tmp_path / str(number)
        status, output = run(config, log, source, "data.train_data_paths=null")
        assert status == 0, output
        (evaluation,) = evaluations(log)
        assert evaluation["step"] == 3 and evaluation["eval/loss"] == expected[3]["eval/loss"]
        assert len((log / "eval" / "step_3.jsonl").read_text().splitlines()) == 101
        assert list((log / "tensorboard").iterdir()) and not (log / EXPERIMENT).exists()


def test_the_state_of_a_checkpoint(whole):
    state = json.loads((whole / EXPERIMENT / "checkpoints" / "global_step_6" / "actor" / "state.json").read_text())
    assert (state["step"], state["samples"], state["epoch"], state["train_rows"]) == (6, 96, 1, 64)
    assert len(state["random_states"]) == 1 and len(state["fingerprint"]) == 64
    assert state["versions"]["torch"] and state["config"]["actor.optim.lr"] == 1e-3
