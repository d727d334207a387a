"""What the plan says of adapters and frozen parts, and which targets are refused before a process starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import estimate_memory
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import check_config, local_topology, make_plan
from rlinf_vlm.types import UserError
from tests.small_run import tree


def plan(small_run, **changes: Any) -> tuple[Any, str]:
    config = load_config(tree(small_run, **{f"actor__model__{key}": value for key, value in changes.items()}))
    made = make_plan(config, local_topology(config), *check_config(config))
    return made, plan_text(config, made)


def test_without_lora_everything_is_trained(small_run):
    made, text = plan(small_run)
    assert made.trained == made.parameters == made.model.parameters and made.adapted == ()
    assert f"{made.parameters:,} parameters, {made.parameters:,} trained" in text and "LoRA" not in text


def test_frozen_parts_are_not_counted_as_trained(small_run):
    made, text = plan(small_run, freeze={"language_model": True})
    assert 0 < made.trained < made.parameters
    assert f"{made.trained:,} trained" in text and "upper bound" not in text


def test_adapters_are_counted_and_described(small_run):
    made, text = plan(small_run, is_lora=True, lora_rank=2, lora_alpha=6, lora_target=["q_proj", "vision_tower.qkv"])
    # two layers each of q_proj [64 -> 64] and qkv [64 -> 192]
    assert made.trained == 2 * 2 * (64 + 64) + 2 * 2 * (64 + 192)
    assert made.parameters == made.model.parameters + made.trained
    assert "LoRA of rank 2, alpha 6, dropout 0 on 4 linear layers of language_model, vision_tower (q_proj, qkv)" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lora_target": ["qkv"]}, r"'qkv' names no linear layer; did you mean 'vision_tower.qkv'\?"),
        ({"lora_target": ["lm_head"]}, "'lm_head' names no linear layer"),
        ({"freeze": {"language_model": True}}, "actor.model.freeze.language_model=true leaves no layer for adapters"),
    ],
)
def test_refused_before_anything_is_loaded(small_run, changes, expected):
    with pytest.raises(UserError, match=expected) as caught:
        plan(small_run, is_lora=True, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("is_lora", "expected"), [(False, 16), (True, 12)])
def test_host_memory_for_copies_by_hand(small_run, is_lora, expected):
    """2**31 parameters, half of them trained, fp32: weights 8 GiB, moments 8; adapters of 2**30: 4 and 8."""
    changes = {"actor__model__is_lora": is_lora, "runner__save_interval": 5}
    config = load_config(tree(small_run, **changes))
    made = make_plan(config, local_topology(config), *check_config(config))
    sizes = {"parameters": 2**31, "trained": 2**30, "largest_block": 0, "outside": 0, "shard": 1}
    memory = estimate_memory(config.actor, **sizes, reshard=True, accumulate=True)
    made = replace(made, parameters=2**31, trained=2**30, passes=replace(made.passes, memory=memory))
    assert f"copies while checkpoints are written: {expected}.00 GiB" in plan_text(config, made)
