"""Reinforcement learning through the launcher: real Ray, the real vLLM engine, real files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.e2e.test_resume import wait_for
from tests.e2e.test_sft import descendants, evaluations, gone, run, start, steps
from tests.small_run import read_jsonl, rl_tree

EXPERIMENT = "rl"
GAP = 1e-5
"""What the log-probabilities of engine and trainer may differ by in fp32."""


@pytest.fixture(scope="module")
def config(small_run, tmp_path_factory) -> Path:
    """Four steps of 6 prompts x 4 answers, some of them without an image; an evaluation every second."""
    path = tmp_path_factory.mktemp("config") / "rl.yaml"
    path.write_text(yaml.safe_dump(rl_tree(small_run, EXPERIMENT)))
    return path


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The run in one go."""
    log = tmp_path_factory.mktemp("rl") / "log"
    status, output = run(config, log)
    assert status == 0, output
    return log


def rollouts(log: Path, step: int) -> list[dict[str, Any]]:
    return read_jsonl(log / "rollouts" / f"step_{step}.jsonl")


def trained(log: Path) -> np.ndarray:
    """Reward and gradient norm of each step (the loss of centred advantages is near 0: all rounding)."""
    return np.array([(line["rollout/reward_mean"], line["train/grad_norm"]) for line in steps(log)])


def test_engine_and_trainer_are_one_model_in_every_step(whole):
    found = steps(whole)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(line["rollout/logprob_gap"] < GAP for line in found)
    assert all(line["train/grad_norm"] > 0 for line in found), "each step changes the weights that the next one samples"
    assert all(line["rollout/answers"] == 24 and line["rollout/groups"] == 6 for line in found)


def test_what_was_sampled_is_written_down(whole):
    for step in (1, 4):
        written = rollouts(whole, step)
        assert {answer["version"] for answer in written} == {step - 1}
        assert len(written) == 24
        assert {answer["group"] for answer in written} == set(range(6 * (step - 1), 6 * step))
    texts = [json.dumps(line) for line in rollouts(whole, 1)]
    assert len(set(texts)) > 20, "answers differ within their groups"


def test_it_is_evaluated_before_between_and_after(whole):
    found = evaluations(whole)
    assert [line["step"] for line in found] == [0, 2, 4]
    assert all(line["eval/samples"] > 0 and "eval/pass@2" in line for line in found)
    assert len(read_jsonl(whole / "eval" / "step_0.jsonl")) == found[0]["eval/samples"]


def test_recorded_answers_train_the_same_without_an_engine(whole, config, tmp_path):
    log = tmp_path / "log"
    replay = f"runner.replay_rollouts={whole}/rollouts"
    status, output = run(config, log, replay, "runner.val_check_interval=-1", "runner.save_interval=-1")
    assert status == 0, output
    assert trained(log) == pytest.approx(trained(whole), rel=1e-5)
    assert "engine:" not in output


def test_resumed_it_samples_what_it_would_have_sampled(whole, config, tmp_path):
    log = tmp_path / "log"
    resume = f"runner.resume_dir={whole}/{EXPERIMENT}/checkpoints/global_step_2"
    status, output = run(config, log, resume, f"runner.logger.log_path={log}")
    assert status == 0, output
    assert [line["step"] for line in steps(log)] == [3, 4]
    assert [line["rollout/logprob_gap"] < GAP for line in steps(log)] == [True, True]
    for step in (3, 4):
        assert answers(log, step) == answers(whole, step)
    assert trained(log) == pytest.approx(trained(whole)[2:], rel=1e-4)


def answers(log: Path, step: int) -> list[tuple[int, int, str]]:
    """Row, member and text of each answer, which is one turn."""
    return [(line["row"], line["member"], line["turns"][0]["text"]) for line in rollouts(log, step)]


def test_apart_and_on_two_ranks_the_answers_are_the_same(whole, config, tmp_path):
    log = tmp_path / "log"
    made = yaml.safe_load(config.read_text())
    made["cluster"] = {
        "cpu_workers_per_node": 3,
        "component_placement": {"actor": "0-1", "rollout": 2, "reward": 0},
    }
    made["runner"] |= {"max_steps": 2, "val_check_interval": -1, "save_interval": -1}
    apart = tmp_path / "apart.yaml"
    apart.write_text(yaml.safe_dump(made))
    status, output = run(apart, log)
    assert status == 0, output
    assert trained(log) == pytest.approx(trained(whole)[:2], rel=1e-4)
    assert all(line["rollout/logprob_gap"] < GAP for line in steps(log))


def test_an_engine_of_two_processes_samples_the_same(whole, config, tmp_path):
    """Each takes its part of every weight that is pushed."""
    log = tmp_path / "log"
    two = ["rollout.tensor_parallel_size=2", "cluster.cpu_workers_per_node=3"]
    apart = "cluster.component_placement={actor: 0, rollout: 1-2}"
    off = ["runner.val_check_interval=-1", "runner.save_interval=-1"]
    status, output = run(config, log, *two, apart, "runner.max_steps=2", *off)
    assert status == 0, output
    assert trained(log) == pytest.approx(trained(whole)[:2], rel=1e-4)
    assert all(line["rollout/logprob_gap"] < GAP for line in steps(log))


@pytest.mark.parametrize("victim", ["engine", "actor"])
def test_a_worker_that_is_killed_ends_the_run_and_leaves_a_checkpoint(config, tmp_path, victim):
    log = tmp_path / "log"
    endless = ["runner.max_steps=1000", "runner.save_interval=1", "runner.val_check_interval=-1"]
    process = start(config, log, f"runner.logger.log_path={log}", *endless, "runner.keep_last=2")
    wait_for(lambda: (log / "metrics.jsonl").exists() and len(steps(log)) >= 3, process, seconds=240)
    below = descendants(process.pid)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below}
    mark = b"EngineCore" if victim == "engine" else b"RankHost"
    chosen = [pid for pid, name in names.items() if mark in name]
    assert chosen, sorted(names.values())
    os.kill(min(chosen), signal.SIGKILL)  # of the hosts, the actor is the first that was started
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 1, output
    assert f"{'rollout' if victim == 'engine' else 'actor'} rank 0" in output
    assert "last finished checkpoint: " in output
    assert not gone(below)
    status, output = run(
        config, log, "runner.resume_dir=auto", f"runner.logger.log_path={log}", "runner.max_steps=6", *endless[1:]
    )
    assert status == 0, output
    assert steps(log)[-1]["step"] >= 6


def test_evaluation_only(whole, config, tmp_path):
    log = tmp_path / "log"
    weights = f"runner.ckpt_path={whole}/{EXPERIMENT}/checkpoints/global_step_4"
    status, output = run(config, log, weights, "data.train_data_paths=null")
    assert status == 0, output
    (found,) = evaluations(log)
    last = evaluations(whole)[-1]
    assert found["eval/reward_mean"] == pytest.approx(last["eval/reward_mean"], rel=1e-5)
    assert not (log / "rollouts").exists()
