"""What ``runner.dry_run=true`` says of how a run computes."""

from __future__ import annotations

import math

from rlinf_vlm.config.actor import PassesConfig
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import Plan, check_config, local_topology, make_plan
from tests.small_run import tree, write_model


def made_plan(folder, model=None, **changes) -> tuple[Config, Plan]:
    if model is not None:
        changes["actor__model__model_path"] = str(model)
    config = load_config(tree(folder, **changes))
    return config, make_plan(config, local_topology(config), *check_config(config))


def passes_section(folder, model=None, **changes) -> dict[str, tuple[str, str]]:
    """Key -> (value, reason) of the plan's lines about passes."""
    text = plan_text(*made_plan(folder, model, **changes))
    lines = text.split("Passes\n")[1].split("\nMemory")[0].splitlines()
    cells = [line.split(maxsplit=2) for line in lines]
    return {key: (value, reason) for key, value, reason in cells}


def test_every_switch_has_a_value_and_a_reason(small_run):
    section = passes_section(small_run)
    assert {f"actor.passes.{name}" for name in PassesConfig.model_fields} < section.keys()
    assert section["actor.packing"] == ("false", "micro_batch_size=4 is given")
    assert section["actor.passes.linear_patch_embed"] == ("true", "its stride is its kernel")
    assert section["actor.passes.compile"] == ("false", "on a CPU, compiling takes longer than it saves")
    assert section["actor.fsdp_config.sharding_strategy"][0] == "shard_grad_op"
    assert section["actor.fsdp_config.gradient_checkpointing"][0] == "false"
    assert section["actor.model.attn_implementation"][1].startswith("sdpa: ")


def test_requests_are_shown_as_such(small_run):
    section = passes_section(
        small_run,
        actor__packing=True,
        actor__passes__compile=True,
        actor__fsdp_config__gradient_checkpointing=0.3,
        actor__fsdp_config__sharding_strategy="full_shard",
    )
    assert section["actor.packing"] == ("true", "requested")
    assert section["actor.passes.compile"] == ("true", "requested")
    assert section["actor.fsdp_config.gradient_checkpointing"] == ("30%", "of the layers  requested")
    assert section["actor.fsdp_config.sharding_strategy"][0] == "full_shard"


def test_adapters_in_the_vision_mlp_keep_its_width(tmp_path, small_run):
    model = write_model(tmp_path / "model", vision_ffn=37)
    asked = {"actor__model__is_lora": True, "actor__passes__pad_vision_mlp": True}
    for targets, why in (
        (["vision_tower.gate_proj"], "requested, changes nothing: its layers have adapters"),
        (["vision_tower.qkv", "gate_proj"], "requested"),
    ):
        section = passes_section(small_run, model, actor__model__lora_target=targets, **asked)
        assert section["actor.passes.pad_vision_mlp"][1].startswith(why)
        assert ("adapters" in section["actor.passes.pad_vision_mlp"][1]) is ("adapters" in why)


def test_an_evaluation_counts_the_gathered_weights(small_run):
    config, plan = made_plan(small_run, data__train_data_paths=None)
    held = plan_text(config, plan).split("(estimate)\n")[1].splitlines()
    assert [line.split()[0] for line in held] == ["weights", "gathered", "total"]
    assert plan.passes.memory is not None and plan.passes.memory.total == 2 * 4 * plan.parameters


def test_parameters_outside_of_blocks_by_hand(small_run):
    _, plan = made_plan(small_run, **{"actor__fsdp_config__sharding_strategy": "full_shard"})
    shapes = plan.model.shapes
    inside = sum(math.prod(shape) for name, shape in shapes.items() if ".blocks." in name or ".layers." in name)
    assert 0 < inside < plan.parameters and plan.passes.memory is not None
    outside = plan.parameters - inside
    assert plan.passes.memory.gathered == 4 * min(plan.parameters, 2 * plan.model.largest_block + outside)
