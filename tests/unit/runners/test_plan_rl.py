"""What the plan of reinforcement learning says, and what it warns of."""

from __future__ import annotations

from typing import Any

from rlinf_vlm.config.load import load_config
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import check_config, local_topology, make_plan
from tests.small_run import tree


def section(small_run, **changes: Any) -> str:
    """The lines of Rollout and Batch, without line breaks."""
    settings = {
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
    config = load_config(tree(small_run, **{**settings, **changes}))
    text = plan_text(config, make_plan(config, local_topology(config), *check_config(config)))
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
