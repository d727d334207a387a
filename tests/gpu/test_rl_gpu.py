"""Reinforcement learning on GPUs: weights handed over in a GPU's memory, and broadcast; engine and trainer agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.e2e.test_sft import run, steps
from tests.small_run import rl_tree, write_small_run

pytestmark = pytest.mark.gpu

GAP = 0.02
"""Bound of the mean difference of log-probabilities in bf16, prompts with images."""


def rewards(log: Path) -> list[float]:
    return [line["rollout/reward_mean"] for line in steps(log)]


def run_on(places: dict[str, Any], folder: Path, **changes: Any) -> Path:
    write_small_run(folder)
    made = rl_tree(folder, "rl", cluster__component_placement=places, runner__max_steps=3, **changes)
    made["runner"] |= {"val_check_interval": -1, "save_interval": -1}
    made["actor"]["fsdp_config"]["mixed_precision"]["param_dtype"] = "bf16"
    made["data"]["max_pixels"] = 112 * 112  # an engine measures itself on the largest image
    made["rollout"] = {"enforce_eager": True, "gpu_memory_utilization": 0.3}
    config = folder / "rl.yaml"
    config.write_text(yaml.safe_dump(made))
    status, output = run(config, folder / "log")
    assert status == 0, output
    return folder / "log"


def test_on_one_gpu_engine_and_trainer_are_one_model_after_each_update(tmp_path):
    log = run_on({"actor,rollout": 0}, tmp_path)
    assert all(line["rollout/logprob_gap"] < GAP and line["train/grad_norm"] > 0 for line in steps(log))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_apart_on_two_gpus_as_well_and_the_answers_are_the_same(tmp_path):
    apart = run_on({"actor": 0, "rollout": 1}, tmp_path / "apart")
    assert all(line["rollout/logprob_gap"] < GAP for line in steps(apart))
    together = run_on({"actor,rollout": 0}, tmp_path / "together")
    assert rewards(apart)[0] == pytest.approx(rewards(together)[0]), "the same weights, pushed another way"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_and_two_engines_share_two_gpus(tmp_path):
    log = run_on({"actor,rollout": "0-1"}, tmp_path)
    assert all(line["rollout/logprob_gap"] < GAP for line in steps(log))
