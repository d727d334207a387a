"""The plan's answer to every ``auto``, by hand-worked numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.memory import GIB, Circumstances, activation_bytes
from rlinf_vlm.config.passes import ModelPasses, choose_packing, choose_passes, padded_width
from rlinf_vlm.types import UserError

H200 = Circumstances(
    on_gpu=True, trains=True, packs=True, packing=True, world_size=1, has_experts=False, vision_mlp=3420,
    adapted_mlp=False, outside=0,
    parameters=3_754_622_976, trained=3_754_622_976, largest_block=77_000_000, hidden_size=2048, num_layers=36,
    tokens=8192, shard=1, memory=140 * GIB,
)  # fmt: skip
LAPTOP = replace(
    H200, on_gpu=False, parameters=2_000_000, trained=2_000_000, memory=16 * GIB, vision_mlp=96,
    hidden_size=64, num_layers=2,
)  # fmt: skip


def actor(**block):
    block.setdefault("model", {})
    block["model"] = {"model_type": "qwen2.5_vl", "model_path": "m", **block["model"]}
    return load_config(
        {"runner": {"task_type": "sft", "max_epochs": 1}, "data": {"train_data_paths": "a"}, "actor": block}
    ).actor


def test_a_3b_model_on_one_h200():
    passes = choose_passes(actor(), H200)
    assert passes.model == ModelPasses(compile=True, pad_vision_mlp=True, grouped_experts=False)
    assert (passes.reshard, passes.accumulate, passes.share_images, passes.fused_optimizer) == (False, True, True, True)
    # 4 + 4 + 8 bytes of masters, gradients and moments, 2 of the gathered copy; 8192 * 2048 * 36 * 80 of activations
    assert passes.memory.total == 3_754_622_976 * 18 + 8192 * 2048 * 36 * 80
    assert "computed as 3,456" in passes.reasons["passes.pad_vision_mlp"]
    assert passes.reasons["fsdp_config.gradient_checkpointing"] == "about 108 of 140 GiB"


def test_a_laptop():
    passes = choose_passes(actor(), LAPTOP)
    assert passes.model == ModelPasses(compile=False, pad_vision_mlp=False, grouped_experts=False)
    assert "on a CPU" in passes.reasons["passes.compile"]
    assert not passes.reshard and passes.model.checkpointed == 0.0


@pytest.mark.parametrize(
    ("tokens", "memory", "shard", "expected"),
    [
        (8192, 140, 1, (False, True, 0.0)),
        (8192, 119, 1, (True, True, 0.0)),  # 107.1 GiB are usable, 107.9 would be needed with all gathered
        (16384, 140, 1, (False, True, 0.4)),
        (8192, 70, 1, (True, True, 0.9)),
        (8192, 90, 4, (False, True, 0.0)),
        (8192, 24, 4, (True, False, 1.0)),  # 14 GiB of unsharded gradients are too much
    ],
)
def test_the_fastest_way_that_fits(tokens, memory, shard, expected):
    passes = choose_passes(actor(), replace(H200, tokens=tokens, memory=memory * GIB, shard=shard))
    assert (passes.reshard, passes.accumulate, passes.model.checkpointed) == expected
    assert passes.memory.total <= 0.9 * memory * GIB


def test_where_nothing_fits_the_leanest_is_taken_and_told():
    passes = choose_passes(actor(), replace(H200, memory=40 * GIB))
    assert (passes.reshard, passes.accumulate, passes.model.checkpointed) == (True, False, 1.0)
    assert "the leanest, and yet more than 90% of 40 GiB" in passes.reasons["fsdp_config.gradient_checkpointing"]


def test_one_tenth_less_of_recomputing_would_not_fit():
    facts = replace(H200, tokens=16384)
    passes = choose_passes(actor(), facts)
    part = round(passes.model.checkpointed - 0.1, 1)
    less = activation_bytes(actor(), tokens=16384, hidden=2048, layers=36, checkpointed=part)
    assert passes.memory.total - passes.memory.activations + less > 0.9 * 140 * GIB


def test_activations_by_hand():
    made = actor()
    assert activation_bytes(made, tokens=10, hidden=4, layers=5, checkpointed=0.0) == 10 * 4 * 80 * 5
    # all recomputed: one layer in full, and the bf16 inputs of five
    assert activation_bytes(made, tokens=10, hidden=4, layers=5, checkpointed=1.0) == 10 * 4 * (80 + 2 * 5)
    assert activation_bytes(made, tokens=None, hidden=4, layers=5, checkpointed=0.0) is None


def test_requests_are_taken():
    block = {
        "passes": {"compile": False, "pad_vision_mlp": False, "share_images": False, "fused_optimizer": False},
        "fsdp_config": {
            "sharding_strategy": "full_shard", "accumulate_unsharded": False, "gradient_checkpointing": 0.25
        },
    }  # fmt: skip
    passes = choose_passes(actor(**block), H200)
    assert passes.model == ModelPasses(checkpointed=0.25, grouped_experts=False)
    assert (passes.reshard, passes.accumulate, passes.share_images, passes.fused_optimizer) == (
        True, False, False, False,
    )  # fmt: skip
    assert passes.reasons["passes.compile"] == "requested"
    assert passes.reasons["fsdp_config.gradient_checkpointing"] == "requested"


@pytest.mark.parametrize(
    ("block", "facts", "why"),
    [
        ({"deterministic": True}, H200, "deterministic=true"),
        ({"model": {"attn_implementation": "sdpa"}}, H200, "attention's shapes"),
        ({"fsdp_config": {"mixed_precision": {"param_dtype": "fp32"}}}, H200, "attention's shapes"),
        ({}, replace(H200, trains=False), "an evaluation is over"),
        ({"model": {"model_type": "auto"}}, replace(H200, packs=False), "the model's own forward"),
    ],
)
def test_what_keeps_auto_from_compiling(block, facts, why):
    passes = choose_passes(actor(**block), facts)
    assert not passes.model.compile and why in passes.reasons["passes.compile"]


def test_compiling_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"actor.passes.compile=true, but model_type='auto' .* set it to auto or false"):
        choose_passes(actor(model={"model_type": "auto"}, passes={"compile": True}), replace(H200, packs=False))


@pytest.mark.parametrize("name", ["linear_patch_embed", "pad_vision_mlp", "grouped_experts"])
def test_what_only_the_packed_forward_does_is_refused_elsewhere(name):
    with pytest.raises(UserError, match=rf"actor.passes.{name}=true, but model_type='auto' .* set it to auto or false"):
        choose_passes(actor(model={"model_type": "auto"}, passes={name: True}), replace(H200, packs=False))


@pytest.mark.parametrize(
    ("name", "facts", "why"),
    [
        ("pad_vision_mlp", replace(H200, vision_mlp=5120), "its width 5,120 is a multiple of 8"),
        ("pad_vision_mlp", replace(H200, vision_mlp=None), "no vision MLP of an odd width"),
        ("pad_vision_mlp", replace(H200, adapted_mlp=True), "its layers have adapters"),
        ("grouped_experts", H200, "no mixture of experts"),
    ],
)
def test_a_request_without_effect_says_so(name, facts, why):
    assert choose_passes(actor(), facts).reasons[f"passes.{name}"].startswith(why)
    asked = choose_passes(actor(passes={name: True}), facts).reasons[f"passes.{name}"]
    assert asked.startswith(f"requested, changes nothing: {why}")
    assert choose_passes(actor(passes={name: False}), facts).reasons[f"passes.{name}"] == "requested"


def test_padding_where_it_is_slow_is_a_request_like_others():
    passes = choose_passes(actor(passes={"pad_vision_mlp": True}), replace(H200, on_gpu=False))
    assert passes.model.pad_vision_mlp and passes.reasons["passes.pad_vision_mlp"] == "requested"


def test_a_mixture_takes_grouped_products():
    assert choose_passes(actor(), replace(H200, has_experts=True)).model.grouped_experts


def test_an_evaluation_holds_weights_alone():
    passes = choose_passes(actor(), replace(H200, trains=False, tokens=None))
    assert passes.memory.total == 3_754_622_976 * 6


def test_an_evaluation_asks_for_nothing_of_a_training():
    """A training's config with its rows set to null, on a GPU that is too small for the training."""
    facts = replace(H200, trains=False, packing=False, world_size=4, memory=24 * GIB)
    passes = choose_passes(actor(packing=True, balance_tokens=True), facts)
    assert (passes.balance_tokens, passes.reshard, passes.model.checkpointed) == (False, False, 0.0)
    for key in (
        "balance_tokens",
        "fsdp_config.gradient_checkpointing",
        "fsdp_config.accumulate_unsharded",
        "passes.frozen_vision_no_grad",
    ):
        assert passes.reasons[key] == "nothing is trained"


def test_activations_of_a_model_of_unknown_sizes_are_not_known():
    passes = choose_passes(actor(), replace(H200, hidden_size=0, num_layers=0))
    assert passes.memory.activations is None


def test_what_is_outside_of_blocks_stays_gathered():
    asked = actor(fsdp_config={"sharding_strategy": "full_shard", "accumulate_unsharded": False})
    without, beside = (choose_passes(asked, replace(H200, outside=outside)).memory for outside in (0, 10**8))
    assert (beside.gathered - without.gathered, beside.gradients - without.gradients) == (2 * 10**8, 4 * 10**8)


def test_unknown_memory_is_spent_with_care():
    passes = choose_passes(actor(), replace(H200, memory=None))
    assert passes.reshard and passes.accumulate and passes.model.checkpointed == 0.0
    assert "not known" in passes.reasons["fsdp_config.sharding_strategy"]


@pytest.mark.parametrize(
    ("block", "packs", "expected"),
    [
        ({}, True, (True, "micro-batches of even cost")),
        ({"micro_batch_size": 8}, True, (False, "micro_batch_size=8 is given")),
        ({"packing": True, "micro_batch_size": 8}, True, (True, "requested")),
        ({"packing": False}, True, (False, "requested")),
        ({}, False, (False, "runs padded rows")),
    ],
)
def test_when_micro_batches_are_packed(block, packs, expected):
    packing, reason = choose_packing(actor(**block), packs=packs)
    assert packing is expected[0] and expected[1] in reason


def test_padded_widths():
    assert [padded_width(width) for width in (1, 64, 65, 3420)] == [64, 64, 128, 3456]


def test_ranks_share_a_step_by_cost_when_packing():
    many = replace(H200, world_size=4)
    assert choose_passes(actor(), many).balance_tokens
    assert not choose_passes(actor(), H200).balance_tokens
    assert not choose_passes(actor(balance_tokens=False), many).balance_tokens
    counting = choose_passes(actor(), replace(many, packing=False))
    assert (counting.balance_tokens, counting.reasons["balance_tokens"]) == (False, "samples are counted, not tokens")
    with pytest.raises(UserError, match=r"actor.balance_tokens=true .* micro-batches count samples"):
        choose_passes(actor(balance_tokens=True), replace(many, packing=False))
