"""The loss and the gradient do not depend on how a step is divided: micro-batch size, packing, ranks, sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from tests.small_run import evaluate, run_ranks, train, tree, write_small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"))


def losses(folder: Path, world: int = 1, **changes: Any) -> list[tuple[float, float]]:
    steps = run_ranks(load_config(tree(folder, **changes)), world, train)[0]
    return [(step["train/loss"], step["train/grad_norm"]) for step in steps]


@pytest.fixture(scope="module")
def reference(folder: Path) -> list[tuple[float, float]]:
    """One rank, one sample a pass."""
    return losses(folder, actor__micro_batch_size=1)


SHARD = "actor__fsdp_config__sharding_strategy"
DIVISIONS = {
    "micro 2": (1, {"actor__micro_batch_size": 2}),
    "micro 8": (1, {"actor__micro_batch_size": 8}),
    "packed": (1, {"actor__packing": True, "actor__max_tokens_per_micro_batch": 256}),
    "2 ranks, full_shard": (2, {SHARD: "full_shard"}),
    "2 ranks, shard_grad_op": (2, {SHARD: "shard_grad_op", "actor__micro_batch_size": 2}),
    "2 ranks, no_shard, packed": (
        2,
        {SHARD: "no_shard", "actor__packing": True, "actor__max_tokens_per_micro_batch": 256},
    ),
    "2 ranks, hybrid_shard": (2, {SHARD: "hybrid_shard", "actor__fsdp_config__hybrid_shard_size": 1}),
    "2 loading processes": (1, {"data__num_workers": 2}),
    "recomputed": (1, {"actor__fsdp_config__gradient_checkpointing": True}),
}


@pytest.mark.parametrize(("world", "changes"), DIVISIONS.values(), ids=DIVISIONS)
def test_the_division_of_a_step_does_not_matter(folder, reference, world, changes):
    found = losses(folder, world, **changes)
    assert len(found) == 3
    for (loss, norm), (expected_loss, expected_norm) in zip(found, reference, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-4)
        assert norm == pytest.approx(expected_norm, rel=1e-3)


def test_the_steps_differ(reference):
    """What the other tests compare is not a constant."""
    assert len({round(loss, 4) for loss, _ in reference}) == 3 and all(norm > 0 for _, norm in reference)


def test_bf16_compute_is_close(folder, reference):
    found = losses(folder, 1, actor__fsdp_config__mixed_precision={"param_dtype": "bf16"})
    assert found != reference
    for (loss, _), (expected, _) in zip(found, reference, strict=True):
        assert loss == pytest.approx(expected, rel=0.02)


def test_ranks_without_rows_of_their_own_keep_step(folder):
    """5 rows in batches of 4: in the second step one rank of two has nothing; a third of the rows have no image."""
    changes = {
        "actor__global_batch_size": 4,
        "actor__micro_batch_size": 1,
        "runner__max_epochs": 1,
        "runner__max_steps": 17,
    }
    two = losses(folder, 2, **changes)
    one = losses(folder, 1, **changes)
    assert len(two) == len(one) == 16
    assert [loss for loss, _ in two] == pytest.approx([loss for loss, _ in one], rel=1e-3)


def test_evaluation_covers_every_row_once_whatever_the_ranks(folder):
    config = load_config(tree(folder))
    one = run_ranks(config, 1, evaluate)[0]
    two = [record for part in run_ranks(config, 2, evaluate) for record in part]
    assert [record.row for record in one] == [record.row for record in two] == list(range(21))
    for left, right in zip(one, two, strict=True):
        assert (left.prediction, left.correct, left.choice_prediction) == (
            right.prediction,
            right.correct,
            right.choice_prediction,
        )
        assert left.choice_logprobs == pytest.approx(right.choice_logprobs, abs=1e-4)
