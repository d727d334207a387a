"""Ways of computing through real steps on two ranks, against one rank that does without: weights, not losses alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from tests.convert_inputs import tiny_processor, write_base
from tests.small_run import run_ranks, tree, whole_weights, write_model
from tests.tiny_models import GENERIC

Trained = tuple[list[float], dict[str, Any]]
"""Losses, and the weights at the end."""


def train_with_evaluations(actor: Any, config: Any) -> Trained:
    """All steps, an evaluation after each. Nothing looks at the weights before: that alone would put them in order."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    losses = []
    for step in range(schedule.total_steps):
        losses.append(actor.train_step(step)["train/loss"])
        actor.evaluate()
    return losses, {name: tensor.float().numpy() for name, tensor in whole_weights(actor).items()}


def trained(folder: Path, world: int, **changes: Any) -> Trained:
    """A larger eps than usual: where a gradient is rounding alone, AdamW would make a whole step of it."""
    config = load_config(tree(folder, actor__optim={"lr": 1e-3, "adam_eps": 1e-3}, **changes))
    return run_ranks(config, world, train_with_evaluations)[0]


def assert_same(found: Trained, wanted: Trained) -> None:
    (losses, weights), (expected, reference) = found, wanted
    assert len(set(expected)) == len(expected)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert weights.keys() == reference.keys()
    for name, weight in reference.items():
        assert np.allclose(weights[name], weight, atol=1e-6), name


def with_rows(small_run: Path, folder: Path) -> Path:
    """``small_run``'s rows beside another model."""
    for part in ("train", "test"):
        shutil.copytree(small_run / part, folder / part)
    (folder / "model").mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("strategy", ["auto", "full_shard"])
def test_a_model_of_transformers_own_forward_learns(small_run, tmp_path, strategy):
    """All of it (embeddings, projector and head too) but the vision layer that LLaVA does not use, and the biases of
    keys, which softmax takes no notice of."""
    folder = with_rows(small_run, tmp_path)
    before = write_base(folder / "model", GENERIC)
    tiny_processor(GENERIC).save_pretrained(folder / "model")
    sharding = {"actor__fsdp_config__sharding_strategy": strategy, "actor__micro_batch_size": 2}
    found = trained(folder, 2, actor__model__model_type="auto", **sharding)
    still = {name for name, weight in found[1].items() if np.array_equal(before[name].numpy(), weight)}
    idle = (".encoder.layers.2.", "post_layernorm", "k_proj.bias")
    assert not [name for name in still if not any(piece in name for piece in idle)]
    assert_same(found, trained(folder, 1, actor__model__model_type="auto", actor__micro_batch_size=16))


def test_a_padded_mlp_trains_the_same_weights(small_run, tmp_path):
    folder = with_rows(small_run, tmp_path)
    write_model(folder / "model", vision_ffn=37)
    padded = trained(folder, 2, actor__passes__pad_vision_mlp=True, actor__micro_batch_size=2)
    assert padded[1]["model.visual.blocks.0.mlp.down_proj.weight"].shape[1] == 37
    assert_same(padded, trained(folder, 1, actor__passes__pad_vision_mlp=False, actor__micro_batch_size=16))
