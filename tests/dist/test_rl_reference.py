"""The reference is the model that the run began with, whatever has been trained since and wherever it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_vlm.config.schema import Config
from rlinf_vlm.rollout.batching import divide
from rlinf_vlm.types import UserError
from rlinf_vlm.workers.reference import Reference
from tests.dist.test_lora import fill_adapters
from tests.rl_run import begin, plain_logprobs, plain_model, prompt_of, run_rl, sampled, to_bytes, train_on
from tests.small_run import whole_weights, write_small_run

KL: dict[str, Any] = {"algorithm__kl_beta": 0.1, "rollout__max_logprob_gap": 100.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"), train_rows=12, test_rows=4)


def train_away(actor: Any, config: Config) -> bytes:
    """Two steps; the divergence before each update, and the largest error of the reference's log-probabilities after
    them, against transformers' own on the model folder."""
    folder = Path(config.actor.model.model_path).parent
    begin(actor, config)
    if config.actor.model.is_lora:
        fill_adapters(actor)
    scored = sampled(actor, folder, rows=2, empty=False)
    found = [train_on(actor, config, scored, step)["train/kl_reference"] for step in range(2)]
    model, banned = plain_model(folder), actor.feed.banned_ids
    texts = [(prompt_of(actor, item.rollout.row), item.rollout.token_ids) for item in scored]
    with torch.no_grad():
        expected = torch.cat([plain_logprobs(model, prompt, ids, banned) for prompt, ids in texts])
    return to_bytes((found, largest_error(actor, scored, expected), policy_error(actor, scored, expected)))


def largest_error(actor: Any, scored: Any, expected: torch.Tensor) -> float:
    with actor._reference.scoring() as policy:
        return error_of(actor, policy, scored, expected)


def policy_error(actor: Any, scored: Any, expected: torch.Tensor) -> float:
    with torch.no_grad():
        return error_of(actor, actor.policy, scored, expected)


def error_of(actor: Any, policy: Any, scored: Any, expected: torch.Tensor) -> float:
    """Of all answers, each rank computing all."""
    answers, (share,) = divide(scored, world_size=1, n_minibatches=1)
    batches = actor._answered.minibatches(answers, share, banned=(), skip_truncated=False)
    (found,) = actor._logprobs(policy, batches)
    logprobs = torch.empty_like(expected)
    for batch, values in zip(batches[0], found, strict=True):
        logprobs[batch.places] = values.detach()
    return float((logprobs - expected).abs().max())


LORA = {"actor__model__is_lora": True, "actor__model__lora_rank": 4, "actor__model__lora_alpha": 8}


@pytest.mark.parametrize(("world", "changes"), [(2, {}), (1, LORA)], ids=["2 ranks", "adapters"])
def test_training_does_not_move_the_reference(folder, world, changes):
    (before, after), reference, policy = run_rl(folder, world, train_away, **KL, **changes)
    assert reference < 2e-5 and policy > 1e-2
    if not changes:  # adapters have been given values before the first step
        assert before == pytest.approx(0.0, abs=1e-6)
    assert after > 1e-4


def go_on(actor: Any, config: Config) -> bytes:
    """What a reference of a checkpoint's weights holds, beside a policy that has been trained on."""
    folder = Path(config.actor.model.model_path).parent
    begin(actor, config)
    scored = sampled(actor, folder, rows=2)
    train_on(actor, config, scored)
    kept = whole_weights(actor)
    state = {"step": 1, "random_states": []}
    place = folder / f"saved_{config.actor.compute_dtype}" / "global_step_1"
    actor.begin_save(str(place), str(place) + ".partial", state)
    actor.finished_save(wait=True)
    train_on(actor, config, scored, 1)
    made = Reference(
        config.actor,
        actor.shard,
        actor.passes,
        actor.device,
        actor.context.rank,
        weights=place / "actor" / "dcp_checkpoint",
        policy=actor.policy,
    )
    held = {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in made._policy.state().items()
    }
    trained = [name for name, value in made._policy.module.named_parameters() if value.requires_grad]
    return to_bytes((kept, held, whole_weights(actor), trained))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_reference_of_a_checkpoint_has_its_weights(folder, dtype):
    precision = {"actor__fsdp_config__mixed_precision": {"param_dtype": dtype}}
    kept, held, now, trained = run_rl(folder, 2, go_on, **KL, **precision)
    wanted = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert kept.keys() == held.keys() and not trained
    assert all(tensor.dtype == wanted and torch.equal(tensor, kept[name].to(wanted)) for name, tensor in held.items())
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in now.items())


def with_adapters_before(actor: Any, config: Config) -> bytes:
    try:
        begin(actor, config, "somewhere/global_step_3")
    except UserError as error:
        return to_bytes(str(error))
    return to_bytes("went on")


def test_a_run_that_began_with_adapters_has_no_reference_beside_them(folder):
    said = run_rl(folder, 1, with_adapters_before, **KL, **LORA)
    assert said.startswith("algorithm.kl_beta needs the model that the run began with"), said
