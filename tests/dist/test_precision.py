"""Precision and frozen parts, through real steps on two ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.models.families import QWEN2_5_VL
from tests.small_run import run_ranks, train, tree, whole_weights

EXACT_PIXELS = replace(QWEN2_5_VL, rounds_pixels=False)
"""The family, with pixels that travel as the processor gives them."""


def train_and_compare(actor: Any, config: Any) -> dict[str, Any]:
    """Dtypes of weights and optimizer state, and which parts two steps have changed."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    before = whole_weights(actor)
    actor.start_training(schedule)
    losses = [actor.train_step(step)["train/loss"] for step in range(schedule.total_steps)]
    after = whole_weights(actor)
    moments = [state["exp_avg"] for state in actor.optimizer.state.values()]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    return {
        "losses": losses,
        "weights": {str(tensor.dtype) for tensor in actor.policy.module.parameters()},
        "moments": {str(moment.dtype) for moment in moments},
        "changed": changed,
        "same": set(after) - changed,
        "trained": actor.policy.num_trained,
    }


PURE = {"actor__model__precision": "bf16"}
MIXED = {"actor__fsdp_config__mixed_precision": {"param_dtype": "bf16"}}


@pytest.mark.parametrize(
    ("changes", "dtype"), [(MIXED, "torch.float32"), (PURE, "torch.bfloat16")], ids=["mixed", "pure"]
)
def test_master_weights(small_run, changes, dtype):
    config = load_config(tree(small_run, runner__max_steps=2, **changes))
    found = run_ranks(config, 2, train_and_compare)[0]
    assert found["weights"] == {dtype} and found["moments"] == {dtype}
    assert found["changed"] and all(0 < loss < 10 for loss in found["losses"])


@pytest.mark.parametrize("changes", [MIXED, PURE], ids=["mixed", "pure"])
def test_pixels_rounded_before_they_are_sent_give_the_same_bits(small_run, changes):
    runs = []
    for model_type in ("qwen2.5_vl", f"{__name__}:EXACT_PIXELS"):
        config = load_config(tree(small_run, runner__max_steps=2, actor__model__model_type=model_type, **changes))
        runs.append([(step["train/loss"], step["train/grad_norm"]) for step in run_ranks(config, 1, train)[0]])
    assert runs[0] == runs[1]


PARTS = {
    "vision_tower": lambda name: name.startswith("model.visual.") and ".merger." not in name,
    "merger": lambda name: ".merger." in name,
    "language_model": lambda name: name.startswith(("model.language_model.", "lm_head.")),
}


@pytest.mark.parametrize("frozen", [["vision_tower"], ["vision_tower", "merger"], ["language_model"]], ids="+".join)
def test_frozen_parts_stay(small_run, frozen):
    freeze = {part: part in frozen for part in PARTS}
    config = load_config(tree(small_run, runner__max_steps=2, actor__model__freeze=freeze))
    found = run_ranks(config, 2, train_and_compare)[0]
    for part, belongs in PARTS.items():
        kept = part in frozen
        names = {name for name in found["changed"] | found["same"] if belongs(name)}
        assert names and (names <= found["same"] if kept else names <= found["changed"]), part
