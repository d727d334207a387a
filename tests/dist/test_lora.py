"""LoRA under FSDP2: gradients, divisions of a step, what is saved and what stays, through real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from rlinf_vlm.algorithms.losses import sft_loss
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.models.loading import wrap_model
from rlinf_vlm.models.lora import is_adapter, write_adapter
from rlinf_vlm.models.policy import VisionLanguageModel
from rlinf_vlm.types import MicroBatch
from tests.small_run import run_ranks, train, tree

SHARD = "actor__fsdp_config__sharding_strategy"
EVERYWHERE = ["language_model", "vision_tower", "merger"]


def lora_tree(folder: Path, **changes: Any) -> dict[str, Any]:
    made = {"is_lora": True, "lora_rank": 4, "lora_alpha": 8, "lora_target": EVERYWHERE}
    return tree(folder, **{f"actor__model__{name}": value for name, value in made.items()}, **changes)


def whole_state(actor: Any) -> dict[str, torch.Tensor]:
    """All weights, whole, by name in the module. Called on all ranks together."""
    return {
        name: tensor.full_tensor().clone() if hasattr(tensor, "full_tensor") else tensor.clone()
        for name, tensor in actor.policy.module.state_dict().items()
    }


def fill_adapters(actor: Any) -> None:
    """Gives B values: with B = 0, as at first, A has no gradient."""
    weights = whole_state(actor)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if ".lora_B." in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    actor.policy.sharded.load(weights if actor.context.rank == 0 else {})


def plain_peft(actor: Any, folder: Path) -> VisionLanguageModel:
    """peft's own model on the base folder with the actor's present adapters, in one process. On all ranks together."""
    state = whole_state(actor)
    folder = folder / str(actor.context.rank)
    adapters = {actor.policy.module.hf_state_name(name): t for name, t in state.items() if is_adapter(name)}
    write_adapter(folder, adapters, actor.policy.adapter_config)
    base = AutoModelForImageTextToText.from_pretrained(actor.config.actor.model.model_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder, is_trainable=True)
    return wrap_model(loaded.base_model.model, actor.policy.module.spec, attention="sdpa")


def gradients_and_plain(actor: Any, config: Any) -> tuple[float, float, list[str]]:
    """Largest gradient, largest difference to a plain peft model's over the same rows, and names without any."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    fill_adapters(actor)
    rows = next(actor.steps)
    supervised, passes = actor._totals(0, rows)
    for micro_batch, is_last in actor._passes(rows, passes):
        loss = sft_loss(actor.policy(micro_batch).logprobs, supervised)
        actor.policy.sharded.backward(loss, is_last=is_last)
    found = {
        actor.policy.module.hf_state_name(name): parameter.grad.full_tensor()
        for name, parameter in actor.policy.module.named_parameters()
        if parameter.grad is not None
    }
    plain = plain_peft(actor, Path(config.runner.logger.log_path))
    shared: list[list[MicroBatch]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shared, list(rows.micro_batches))
    for batches in shared:
        for batch in batches:
            sft_loss(plain(batch).logprobs, supervised).backward()
    wanted = {plain.hf_state_name(n): p.grad for n, p in plain.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    difference = max(float((found[name] - gradient).abs().max()) for name, gradient in wanted.items())
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    return largest, difference, [name for name, gradient in wanted.items() if not gradient.any()]


STRATEGIES = {
    "full_shard": {SHARD: "full_shard", "actor__fsdp_config__gradient_checkpointing": True},
    "shard_grad_op": {SHARD: "shard_grad_op"},
    "no_shard": {SHARD: "no_shard"},
    "hybrid_shard": {SHARD: "hybrid_shard", "actor__fsdp_config__hybrid_shard_size": 1},
}


@pytest.mark.parametrize("changes", STRATEGIES.values(), ids=STRATEGIES)
def test_gradients_are_those_of_plain_peft(small_run, tmp_path, changes):
    """Frozen and trained parameters share FSDP's groups here."""
    config = load_config(lora_tree(small_run, runner__logger__log_path=str(tmp_path), **changes))
    for largest, difference, without in run_ranks(config, 2, gradients_and_plain):
        assert largest > 1e-2 and difference < 1e-5 * max(1.0, largest)
        assert without == []


def train_and_report(actor: Any, config: Any) -> dict[str, Any]:
    """Steps; what changed; what the optimizer and a checkpoint hold; scores by the actor and by plain peft."""
    facts = actor.load()
    before = whole_state(actor)
    actor.start_training(resolve_schedule(config, facts.train_rows))
    steps = [actor.train_step(step) for step in range(actor.schedule.total_steps)]
    after = whole_state(actor)
    batch = next(iter(next(actor.feed.train(actor.schedule, actor.policy.feature_weight)).micro_batches))
    plain = plain_peft(actor, Path(config.runner.logger.log_path))
    actor.policy.module.eval()
    plain.eval()
    with torch.no_grad():
        scores, theirs = actor.policy(batch).logprobs, plain(batch).logprobs
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    return {
        "steps": steps,
        "facts": (facts.parameters, facts.trained_parameters),
        "changed": changed,
        "same": set(after) - changed,
        "optimized": sum(p.numel() for group in actor.optimizer.param_groups for p in group["params"]),
        "saved": sum(tensor.numel() for tensor in actor.policy.state().values()),
        "saved names": list(actor.policy.state()),
        "difference": float((scores - theirs).abs().max()),
    }


def test_only_adapters_change_are_optimized_and_saved(small_run, tmp_path):
    changes = {"actor__optim__lr": 1e-2, "runner__logger__log_path": str(tmp_path)}
    found = run_ranks(load_config(lora_tree(small_run, runner__max_steps=4, **changes)), 2, train_and_report)[0]
    assert found["changed"] == {name for name in found["changed"] | found["same"] if is_adapter(name)}
    total, trained = found["facts"]
    assert found["optimized"] == found["saved"] == trained < 0.5 * total
    assert all(is_adapter(name) and name.startswith("model.") for name in found["saved names"])
    assert found["difference"] < 1e-5
    losses = [step["train/loss"] for step in found["steps"]]
    assert losses[-1] < losses[0] - 0.3


PURE = {"actor__model__precision": "bf16"}
MIXED = {"actor__fsdp_config__mixed_precision": {"param_dtype": "bf16"}}


@pytest.mark.parametrize("precision", [PURE, MIXED], ids=["pure bf16", "mixed"])
def test_a_small_model_learns_with_dropout_recomputation_packing_and_a_frozen_part(small_run, precision):
    changes = {
        "actor__optim__lr": 1e-2,
        "actor__model__lora_dropout": 0.2,
        "actor__model__freeze": {"vision_tower": True},
        "actor__fsdp_config__gradient_checkpointing": True,
        "actor__packing": True,
        "actor__max_tokens_per_micro_batch": 256,
        "runner__max_steps": 8,
        **precision,
    }
    steps = run_ranks(load_config(lora_tree(small_run, **changes)), 2, train)[0]
    losses = [step["train/loss"] for step in steps]
    assert losses[-1] < losses[0] - 1.0


DIVISIONS = {
    "packed": (1, {"actor__packing": True, "actor__max_tokens_per_micro_batch": 256}),
    "2 ranks": (2, {}),
}


def losses(folder: Path, world: int = 1, **changes: Any) -> list[tuple[float, float]]:
    steps = run_ranks(load_config(lora_tree(folder, **changes)), world, train)[0]
    return [(step["train/loss"], step["train/grad_norm"]) for step in steps]


@pytest.fixture(scope="module")
def reference(small_run) -> list[tuple[float, float]]:
    """One rank, one sample a pass."""
    found = losses(small_run, actor__micro_batch_size=1)
    assert len({round(loss, 3) for loss, _ in found}) == 3 and all(norm > 0 for _, norm in found)
    return found


@pytest.mark.parametrize(("world", "changes"), DIVISIONS.values(), ids=DIVISIONS)
def test_the_division_of_a_step_does_not_matter(small_run, reference, world, changes):
    """The first values of adapters do not depend on the ranks, nor on what was drawn before."""
    for (loss, norm), (expected_loss, expected_norm) in zip(
        losses(small_run, world, **changes), reference, strict=True
    ):
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert norm == pytest.approx(expected_norm, rel=1e-3)
