"""What the plan of reinforcement learning says, and what it warns of."""

from __future__ import annotations

from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import check_config, local_topology, make_plan
from rlinf_vlm.types import UserError
from tests.small_run import tree

PLAIN = {
    "runner__task_type": "reasoning",
    "runner__max_steps": 3,
    "cluster__component_placement": {"actor,rollout": 0},
    "data__max_prompt_length": 200,
    "data__rollout_batch_size": 4,
    "algorithm__group_size": 4,
    "algorithm__sampling_params": {"max_new_tokens": 40},
    "actor__global_batch_size": 16,
    "rollout__kv_cache_gib": 0.25,
}


def whole_plan(small_run, **settings: Any) -> str:
    config = load_config(tree(small_run, **settings))
    return plan_text(config, make_plan(config, local_topology(config), *check_config(config)))


def section(small_run, **changes: Any) -> str:
    """The lines of Rollout and Batch, without line breaks."""
    text = whole_plan(small_run, **{**PLAIN, **changes})
    return text[text.index("Rollout\n") : text.index("Length\n")]


def test_a_plain_run(small_run):
    text = section(small_run)
    for said in (
        "sampling    temperature 1, at most 40 tokens; evaluation: greedy, none sampled",
        "weights     pushed through shm (actor and rollout run on CPUs of one machine)",
        "algorithm   grpo, clipped -0.2/+0.28, token-mean; rollout correction truncate at 2 by token; "
        "divergence none (no reference is built)",
        "16 answers a step = 4 prompts x 4, in 1 update (strictly on-policy)",
    ):
        assert said in text
    assert "besides" not in text and "note:" not in text


def test_rows_and_settings_of_the_evaluation(small_run):
    settings = {
        **PLAIN,
        "data__test_data_paths": str(small_run / "test"),
        "algorithm__eval_settings": [
            {"name": "high", "temperature": 1.0, "n": 8},
            {"name": "low", "temperature": 0.01},
        ],
    }
    text = whole_plan(small_run, **settings)
    assert "evaluation: greedy, none sampled; high: 8 at 1; low: 1 at 0.01" in text
    assert f"  test        {small_run}/test (101 rows)" in text
    assert "  test  " not in whole_plan(small_run, **PLAIN)
    with pytest.raises(UserError, match=r"data.test_data_paths.*/nowhere"):
        whole_plan(small_run, **{**settings, "data__test_data_paths": "/nowhere/rows"})


def test_what_is_asked_for_besides(small_run):
    algorithm = {
        "algorithm__dynamic_sampling": {"enabled": True, "max_rounds": 5},
        "algorithm__overlong": {"buffer": 10, "factor": 0.5, "filter_truncated": True},
        "algorithm__entropy_bonus": 0.01,
        "algorithm__kl_beta": 0.02,
    }
    text = section(small_run, **algorithm)
    assert "divergence k3 x 0.02 in the loss" in text
    assert (
        "besides     groups of equal rewards are replaced, up to 5 rounds a step; from 30 tokens on up to 0.5 is taken "
        "off the reward; truncated answers are left out of the loss; entropy bonus 0.01" in text
    )


def test_a_clip_that_never_clips_is_told(small_run):
    gspo = {"algorithm__loss_type": "gspo", "algorithm__n_minibatches": 2, "actor__global_batch_size": 8}
    assert "note: gspo clips the mean ratio of an answer" in section(small_run, **gspo)
    usual = {"algorithm__clip_ratio_low": 3e-4, "algorithm__clip_ratio_high": 4e-4}
    assert "note:" not in section(small_run, **gspo, **usual)


def test_a_reward_that_is_never_1_is_told(small_run):
    def weighted(maths: float, form: float) -> str:
        parts = {"math": {"weight": maths}, "format": {"weight": form}}
        return section(small_run, reward={"name": "composite", "options": {"parts": parts}})

    assert "note: eval/accuracy counts the answers of reward 1, and the reward's weights add up to 0.9" in weighted(
        0.8, 0.1
    )
    assert "note:" not in weighted(0.9, 0.1)


def test_whom_the_policy_speaks_with(small_run):
    assert "environment" not in section(small_run)
    tool = {
        "env__name": "geo3k_tool",
        "env__max_turns": 3,
        "env__max_new_tokens": 20,
        "env__max_observation_tokens": 64,
        "actor__max_tokens_per_micro_batch": 8192,
    }
    text = section(small_run, **tool, env__options={"tolerance": 0.05}, env__eval_options={"tool": False})
    assert (
        "environment geo3k_tool {'tolerance': 0.05}, at most 3 turns of at most 20 tokens, 64 tokens an observation, "
        "30 s a call; in evaluation {'tool': False}" in text
    )
    assert "note:" not in text
    assert "note: geo3k_tool knows the right answers, in evaluation too" in section(small_run, **tool)
    assert "note: env.max_turns=1: a conversation ends before" in section(small_run, **{**tool, "env__max_turns": 1})
