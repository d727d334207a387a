"""What ``runner.dry_run=true`` says of how a run computes."""

from __future__ import annotations

from rlinf_vlm.config.actor import PassesConfig
from rlinf_vlm.config.load import load_config
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import check_config, local_topology, make_plan
from tests.small_run import tree


def passes_section(folder, **changes) -> dict[str, tuple[str, str]]:
    """Key -> (value, reason) of the plan's lines about passes."""
    config = load_config(tree(folder, **changes))
    text = plan_text(config, make_plan(config, local_topology(config), *check_config(config)))
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
