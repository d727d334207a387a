"""Reinforcement learning when rows, rewards and processes fail: counted, told, and nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.test_resume import wait_for
from tests.e2e.test_sft import descendants, evaluations, gone, run, start, steps
from tests.small_run import choice_rows, read_jsonl, tree, write_parquet

RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
LOOKS = " Look." * 400
"""Makes a question too long."""
TORN, LONG = (1, 5), (2, 9)
"""Rows of the evaluation that cannot be used."""


@pytest.fixture(scope="module")
def trouble(small_run, tmp_path_factory) -> Path:
    """Every second training row cannot be used, nor four evaluation rows; a reward that mostly fails."""
    folder = tmp_path_factory.mktemp("trouble")
    training, evaluation = choice_rows(64), choice_rows(21, seed=1)
    for row in range(0, 64, 4):
        training[row]["image"] = {"bytes": b"no picture", "path": None}
        training[row + 1]["question"] += LOOKS
    for torn, long in zip(TORN, LONG, strict=True):
        evaluation[torn]["image"] = {"bytes": b"no picture", "path": None}
        evaluation[long]["question"] += LOOKS
    changes: dict[str, Any] = {
        "runner__task_type": "reasoning",
        "runner__max_steps": 2,
        "runner__val_check_interval": 2,
        "runner__save_interval": -1,
        "runner__logger": {"experiment_name": "trouble", "logger_backends": []},
        "cluster__component_placement": {"actor,rollout": 0},
        "data__train_data_paths": str(write_parquet(training, folder / "train" / "part.parquet")),
        "data__eval_data_paths": str(write_parquet(evaluation, folder / "test" / "part.parquet")),
        "data__max_prompt_length": 200,
        "data__rollout_batch_size": 12,
        "data__on_bad_row": "drop",
        "algorithm": {
            "group_size": 4,
            "sampling_params": {"max_new_tokens": 12},
            "eval_sampling_params": {"max_new_tokens": 8},
        },
        "reward": {"name": "tests.rl_rewards:Troubled", "num_workers": 2, "time_limit": 1.0},
        "rollout": {"kv_cache_gib": 0.25},
    }
    made = tree(small_run, **changes)
    del made["actor"]["global_batch_size"]
    path = folder / "rl.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def test_what_fails_is_counted_and_the_run_goes_on(trouble, tmp_path):
    status, output = run(trouble, tmp_path / "log")
    assert status == 0, output
    found = steps(tmp_path / "log")
    assert [line["step"] for line in found] == [1, 2]
    for line in found:
        assert line["rollout/groups"] + line["data/dropped_prompts"] == 12
        assert line["rollout/answers"] == 4 * line["rollout/groups"]
        recorded = read_jsonl(tmp_path / "log" / "rollouts" / f"step_{line['step']}.jsonl")
        for status_of in ("error", "died", "timeout"):
            count = sum(answer["status"] == status_of for answer in recorded)
            assert line.get(f"reward/failed_{status_of}", 0) == count
        good = [answer["reward"] for answer in recorded if answer["status"] == "ok"]
        assert line["reward/failed"] == len(recorded) - len(good)
        assert line["rollout/reward_mean"] == pytest.approx(sum(good) / len(good)), "a failure is not a reward of 0"
        assert line["train/updates"] == 1 and line["train/grad_norm"] > 0
    kinds = {name for line in found for name in line if name.startswith("reward/failed_")}
    assert kinds == {"reward/failed_error", "reward/failed_died", "reward/failed_timeout"}
    assert sum(line["data/dropped_prompts"] for line in found) > 0
    for line in evaluations(tmp_path / "log"):
        assert (line["eval/samples"], line["eval/dropped_rows"]) == (17, 4)
    unusable = [line["row"] for line in read_jsonl(tmp_path / "log" / "eval" / "step_2.jsonl") if "error" in line]
    assert unusable == sorted(TORN + LONG)
    assert "  unjudged " in output and "  dropped prompts " in output


def test_a_driver_that_is_killed_leaves_nothing_behind(trouble, tmp_path):
    log = tmp_path / "log"
    endless = ["runner.max_steps=1000", "runner.val_check_interval=-1", f"runner.logger.log_path={log}"]
    process = start(trouble, log, *endless)
    wait_for(lambda: (log / "metrics.jsonl").exists() and len(steps(log)) >= 1, process, seconds=240)
    below = descendants(process.pid)
    names = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in below if psutil.pid_exists(pid)}
    assert any("pool_worker" in name for name in names.values()), sorted(names.values())
    driver = [pid for pid in {process.pid, *below} if "train_vlm.py" in " ".join(psutil.Process(pid).cmdline())]
    os.kill(min(driver), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    # Ray's own two agents look for their raylet now and then, and end a minute or so later.
    ours = {pid for pid in below if not names.get(pid, "").startswith(RAY_AGENTS)}
    left = gone(ours, seconds=60)
    assert not left, [names.get(pid) for pid in left]
