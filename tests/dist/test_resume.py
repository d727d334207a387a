"""A run that goes on from a checkpoint, through real steps: bit for bit on as many ranks, to rounding on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlinf_vlm.checkpoints import open_checkpoint
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import Start, resolve_schedule
from rlinf_vlm.types import UserError
from tests.small_run import run_ranks, tree, whole_weights

SAVED = {"step": 3, "samples": 48, "saved_at": 1.0}


def folder_of(config: Any) -> Path:
    return Path(config.runner.logger.log_path) / "sft" / "checkpoints" / "global_step_3"


def save_and_go_on(actor: Any, config: Any) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Six steps; a checkpoint after three, with an evaluation while it is written. Metrics, weights at the end."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    metrics = []
    for step in range(schedule.total_steps):
        metrics.append(actor.train_step(step))
        if step == 2:
            folder = folder_of(config)
            actor.begin_save(str(folder), f"{folder}.partial-1", SAVED)
            actor.evaluate()
    assert actor.finished_save(wait=True) is not None
    return metrics, arrays(actor)


def go_on(actor: Any, config: Any) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """The three steps that are left."""
    folder = folder_of(config)
    facts = actor.load(str(open_checkpoint(folder).dcp))
    schedule = resolve_schedule(config, facts.train_rows, Start(step=3, samples=48))
    actor.start_training(schedule, str(folder))
    metrics = [actor.train_step(step) for step in range(3, schedule.total_steps)]
    return metrics, arrays(actor)


def arrays(actor: Any) -> dict[str, np.ndarray]:
    """The weights, exactly, as something that travels between processes."""
    return {name: tensor.float().numpy() for name, tensor in whole_weights(actor).items()}


def numbers(metrics: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(line["train/loss"], line["train/grad_norm"], line["train/lr"]) for line in metrics]


def config_in(small_run: Path, log: Path, **changes: Any) -> Any:
    settings = {"runner__max_steps": 6, "runner__logger": {"log_path": str(log), "logger_backends": []}, **changes}
    return load_config(tree(small_run, **settings))


CASES = {
    "one rank": (1, {}),
    "two ranks": (2, {}),
    "pure bf16": (2, {"actor__model__precision": "bf16"}),
    "packed, loaded ahead": (1, {"actor__packing": True, "data__num_workers": 1}),
    "frozen tower": (2, {"actor__model__freeze": {"vision_tower": True}}),
    "only kernels that repeat": (2, {"actor__deterministic": True, "actor__model__is_lora": True}),
    "LoRA with dropout": (2, {"actor__model__is_lora": True, "actor__model__lora_dropout": 0.3}),
}


@pytest.mark.parametrize(("world", "changes"), CASES.values(), ids=CASES)
def test_the_next_steps_are_those_of_a_run_that_was_never_stopped(small_run, tmp_path, world, changes):
    config = config_in(small_run, tmp_path, actor__optim={"lr": 1e-3, "lr_scheduler": "cosine"}, **changes)
    (metrics, weights), *_ = run_ranks(config, world, save_and_go_on)
    (resumed, again), *_ = run_ranks(config, world, go_on)
    assert numbers(resumed) == numbers(metrics)[3:]
    assert weights.keys() == again.keys() and all(np.array_equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_changes_rounding_alone(small_run, tmp_path, before, after):
    config = config_in(small_run, tmp_path)
    (metrics, weights), *_ = run_ranks(config, before, save_and_go_on)
    other = config_in(small_run, tmp_path, actor__micro_batch_size=2)
    (resumed, again), *_ = run_ranks(other, after, go_on)
    for one, two in zip(metrics[3:], resumed, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
        assert two["train/supervised_tokens"] == one["train/supervised_tokens"], "the same rows"
    assert all(np.allclose(weights[name], again[name], atol=1e-4) for name in weights)


def load_elsewhere(actor: Any, config: Any) -> str:
    """What is said when the checkpoint is read with another model block."""
    try:
        actor.load(str(open_checkpoint(folder_of(config)).dcp))
    except UserError as error:
        return str(error)
    return "loaded"


def test_a_checkpoint_of_another_kind_of_model_is_refused(small_run, tmp_path):
    run_ranks(config_in(small_run, tmp_path), 1, save_and_go_on)
    (said,) = run_ranks(config_in(small_run, tmp_path, actor__model__is_lora=True), 1, load_elsewhere)
    assert "it holds a whole model, and actor.model.is_lora=true" in said
