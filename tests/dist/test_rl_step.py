"""One step of reinforcement learning: its gradient against plain torch, and the same however the step is divided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlinf_vlm.config.schema import Config
from rlinf_vlm.rollout.records import ScoredRollout
from rlinf_vlm.types import UserError
from tests.rl_run import (
    begin,
    keep_gradients,
    plain_logits,
    plain_logprobs,
    plain_model,
    prompt_of,
    run_rl,
    sampled,
    to_bytes,
    train_on,
)
from tests.small_run import whole_weights, write_small_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"), train_rows=12, test_rows=4)


def files(config: Config) -> Path:
    return Path(config.actor.model.model_path).parent


# --- against plain torch ---------------------------------------------------------------------------------------------

CLIPPED: dict[str, Any] = {
    "algorithm__n_minibatches": 2,
    "algorithm__clip_ratio_low": 0.05,
    "algorithm__clip_ratio_high": 0.1,
    "algorithm__kl_beta": 0.1,
    "algorithm__entropy_bonus": 0.03,
    "algorithm__rollout_correction": {"upper": 1.02},
    "actor__optim__lr": 2e-3,
    # Mini-batches are of the weights that the one before it made.
    "rollout__max_logprob_gap": 10.0,
}


def two_updates(actor: Any, config: Config) -> bytes:
    """Two updates of one step; the weights before each, what each was given as gradient, metrics, answers."""
    begin(actor, config)
    scored = sampled(actor, files(config))
    weights = []
    kept = keep_gradients(actor)
    update = actor._update

    def noting(step: int) -> float:
        weights.append(whole_weights(actor))
        return update(step)

    actor._update = noting
    metrics = train_on(actor, config, scored)
    prompts = [prompt_of(actor, row) for row in range(6)]
    return to_bytes((weights, kept, metrics, scored, prompts, actor.feed.banned_ids))


def test_two_updates_are_what_plain_torch_makes_of_them(folder):
    """GRPO's advantages, clipping, dual mini-batches, truncated importance weights, k3 and entropy, written out."""
    weights, kept, metrics, scored, prompts, banned = run_rl(folder, 1, two_updates, **CLIPPED)
    assert len(kept) == 2 and metrics["train/updates"] == 2 and metrics["train/skipped_updates"] == 0
    model = plain_model(folder)
    with torch.no_grad():
        first = [
            plain_logprobs(model, prompts[item.rollout.row], item.rollout.token_ids, banned)
            if item.rollout.token_ids
            else torch.zeros(0)
            for item in scored
        ]
    clipped = 0
    for number in range(2):
        model.load_state_dict(weights[number], strict=False)
        model.zero_grad()
        chosen = [(item, old) for item, old in zip(scored, first, strict=True) if item.rollout.row // 3 == number]
        tokens = sum(len(old) for _, old in chosen)
        for item, old in chosen:
            if not len(old):
                continue
            advantage = by_hand_advantage(item, scored)
            logits = plain_logits(model, prompts[item.rollout.row], item.rollout.token_ids, banned)
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(item.rollout.token_ids)[:, None])[:, 0]
            ratio = (logprobs - old).exp()
            loss = -torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.1) * advantage)
            clipped += int(((ratio > 1.1) & (advantage > 0) | (ratio < 0.95) & (advantage < 0)).sum())
            loss = loss * (old - torch.tensor(item.rollout.logprobs)).exp().clamp(max=1.02)
            loss = loss + 0.1 * ((old - logprobs).exp() - (old - logprobs) - 1)
            entropy = torch.distributions.Categorical(probs=logits.softmax(-1)).entropy()
            ((loss - 0.03 * entropy).sum() / tokens).backward()
        names = [name for name, value in model.named_parameters() if value.grad is not None]
        assert len(names) == len(kept[number])
        for name, value in model.named_parameters():
            torch.testing.assert_close(kept[number][name], value.grad, rtol=1e-3, atol=2e-6)
        total = torch.stack([kept[number][name].norm() for name in names]).norm()
        difference = torch.stack(
            [(kept[number][name] - value.grad).norm() for name, value in model.named_parameters()]
        ).norm()
        assert total > 0.1 and difference < 2e-5 * total
    assert clipped > 10, "the second update does not reach the clip: the test does not see it"
    count = metrics["train/answer_tokens"]
    assert count == sum(len(old) for old in first)
    shares = metrics["train/clip_fraction_low"] + metrics["train/clip_fraction_high"]
    assert shares == pytest.approx(clipped / count, rel=1e-6)
    gaps = torch.cat(
        [(old - torch.tensor(item.rollout.logprobs)).abs() for item, old in zip(scored, first, strict=True)]
    )
    assert metrics["rollout/logprob_gap"] == pytest.approx(float(gaps.mean()), rel=1e-3)
    assert metrics["rollout/logprob_gap_max"] == pytest.approx(float(gaps.max()), rel=1e-3)
    assert 0 < metrics["rollout/correction_cut"] < 1 and metrics["train/kl_reference"] > 0


def by_hand_advantage(item: ScoredRollout, scored: list[ScoredRollout]) -> float:
    rewards = torch.tensor([other.reward for other in scored if other.rollout.group == item.rollout.group])
    return 0.0 if rewards.unique().numel() == 1 else float((item.reward - rewards.mean()) / (rewards.std() + 1e-6))


# --- however it is divided -------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "two mini-batches, gspo, answers' means": {
        "n_minibatches": 2,
        "loss_type": "gspo",
        "loss_agg_func": "seq-mean-token-mean",
        "rollout_correction": {"level": "sequence"},
    },
    "divergence in the reward, whitened over tokens": {"adv_type": "reinpp", "kl_beta": 0.5, "kl_in": "reward"},
    "without truncated answers, cispo, a constant length": {
        "overlong": {"filter_truncated": True},
        "loss_type": "cispo",
        "loss_agg_func": "seq-mean-token-sum-norm",
        "entropy_bonus": 0.1,
    },
}
PACKED: dict[str, Any] = {"actor__packing": True, "actor__max_tokens_per_micro_batch": 300}
DIVISIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "packed": (1, PACKED),
    "2 ranks": (2, {"actor__micro_batch_size": 2}),
    "2 ranks, no_shard, packed": (2, {**PACKED, "actor__fsdp_config__sharding_strategy": "no_shard"}),
    "rendered on threads, recomputed": (
        1,
        {"data__num_workers": 3, "actor__fsdp_config__gradient_checkpointing": True, "actor__micro_batch_size": 5},
    ),
}


def variants(actor: Any, config: Config) -> bytes:
    """For each variant, the gradients of its updates, and its metrics. The reference is another model than trains."""
    kept: list[dict[str, torch.Tensor]] = keep_gradients(actor)
    actor.load()
    scored = sampled(actor, files(config))
    found = {}
    for name, settings in VARIANTS.items():
        tree = config.model_dump()
        tree["algorithm"].update(settings)
        actor.config = Config(**tree)
        begin(actor, actor.config)
        kept.clear()
        metrics = train_on(actor, actor.config, scored)
        found[name] = ([dict(gradients) for gradients in kept], metrics)
    return to_bytes(found)


def divided(folder: Path, world: int, **changes: Any) -> dict[str, Any]:
    # Without a step of the weights, all updates are of the same.
    return run_rl(folder, world, variants, actor__optim__lr=0.0, **changes)


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> dict[str, Any]:
    """One rank, one answer a pass."""
    return divided(folder, 1, actor__micro_batch_size=1)


SUMS = (
    "train/loss",
    "train/grad_norm",
    "train/entropy",
    "train/answer_tokens",
    "train/advantage_abs_mean",
    "rollout/logprob_gap",
    "rollout/logprob_gap_max",
    "rollout/correction_weight",
    "rollout/effective_fraction",
)


@pytest.mark.parametrize(("world", "changes"), DIVISIONS.values(), ids=DIVISIONS)
def test_the_division_of_a_step_does_not_matter(folder, one_by_one, world, changes):
    found = divided(folder, world, **changes)
    for name in VARIANTS:
        (gradients, metrics), (expected, expected_metrics) = found[name], one_by_one[name]
        assert len(gradients) == len(expected) == VARIANTS[name].get("n_minibatches", 1)
        for ours, theirs in zip(gradients, expected, strict=True):
            norm = torch.stack([value.norm() for value in theirs.values()]).norm()
            difference = torch.stack([(ours[key] - value).norm() for key, value in theirs.items()]).norm()
            assert norm > 0.01 and difference < 1e-5 * norm, name
        for key in SUMS:
            assert metrics[key] == pytest.approx(expected_metrics[key], rel=2e-5, abs=1e-6), (name, key)


def test_the_variants_differ(one_by_one):
    """What is compared is not one thing four times, and leaves out what it says."""
    assert len({round(metrics["train/grad_norm"], 5) for _, metrics in one_by_one.values()}) == 4
    assert one_by_one["grpo"][1]["train/micro_batches"] == 23  # 24 answers, one of them empty
    assert "train/kl_reference" in one_by_one["divergence in the reward, whitened over tokens"][1]


# --- degenerate steps and mistakes -----------------------------------------------------------------------------------


def degenerate(actor: Any, config: Config) -> bytes:
    """Steps that have nothing to learn from, and answers that are not to be learned from."""
    kept = keep_gradients(actor)
    begin(actor, config)
    scored = sampled(actor, files(config), rows=2)
    found: dict[str, Any] = {}
    weights = whole_weights(actor)
    found["empty"] = train_on(actor, config, [changed(item, token_ids=(), logprobs=()) for item in scored])
    found["none"] = train_on(actor, config, [])
    found["empty updates"] = len(kept)
    found["same weights"] = all(torch.equal(value, weights[name]) for name, value in whole_weights(actor).items())
    found["far"] = stops(actor, config, [changed(item, logprobs=shifted(item, 0.2)) for item in scored])
    found["nan"] = stops(actor, config, [changed(item, logprobs=shifted(item, float("nan"))) for item in scored])
    found["still the same"] = all(torch.equal(value, weights[name]) for name, value in whole_weights(actor).items())
    found["other prompt"] = stops(actor, config, [changed(item, prompt_digest=5) for item in scored])
    banned = actor.feed.banned_ids[0]
    found["banned"] = stops(actor, config, [changed(item, token_ids=(banned,), logprobs=(-1.0,)) for item in scored])
    kept.clear()
    found["equal"] = train_on(actor, config, [replace(item, reward=0.9) for item in scored])
    found["equal gradients"] = kept[0]
    return to_bytes(found)


def changed(item: ScoredRollout, **fields: Any) -> ScoredRollout:
    """With other fields of the rollout, or of its one turn."""
    (turn,) = item.rollout.turns
    spoken = {name: fields.pop(name) for name in ("token_ids", "logprobs") if name in fields}
    return replace(item, rollout=replace(item.rollout, turns=(replace(turn, **spoken),), **fields))


def shifted(item: ScoredRollout, by: float) -> tuple[float, ...]:
    return tuple(value + by for value in item.rollout.logprobs)


def stops(actor: Any, config: Config, scored: list[ScoredRollout]) -> str:
    try:
        train_on(actor, config, scored)
    except (UserError, ValueError) as error:
        actor.policy.module.zero_grad()
        return f"{type(error).__name__}: {error}"
    return "went on"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def odd_steps(request, folder: Path) -> dict[str, Any]:
    return run_rl(folder, request.param, degenerate)


def test_answers_without_tokens_are_no_update(odd_steps):
    assert odd_steps["empty"]["train/skipped_updates"] == 1 and odd_steps["empty"]["train/updates"] == 0
    assert odd_steps["empty"]["train/loss"] == 0 and odd_steps["empty updates"] == 0 and odd_steps["same weights"]


def test_a_step_without_answers_is_no_update(odd_steps):
    assert odd_steps["none"]["train/updates"] == odd_steps["none"]["train/skipped_updates"] == 0
    assert odd_steps["none"]["train/loss"] == odd_steps["none"]["train/grad_norm"] == 0


def test_equal_rewards_have_no_gradient_at_all(odd_steps):
    assert odd_steps["equal"]["train/loss"] == 0 and odd_steps["equal"]["train/grad_norm"] == 0
    assert odd_steps["equal"]["train/answer_tokens"] > 0 and odd_steps["equal"]["train/updates"] == 1
    assert all(bool((value == 0).all()) for value in odd_steps["equal gradients"].values())


def test_another_model_s_answers_stop_the_step_before_it_moves_anything(odd_steps):
    assert odd_steps["far"].startswith("UserError: step 1: rollout/logprob_gap=0.")
    assert float(odd_steps["far"].split("=")[1].split(":")[0]) == pytest.approx(0.2, abs=0.02)
    assert "rollout.max_logprob_gap=0.05" in odd_steps["far"] and "\n" not in odd_steps["far"]
    assert odd_steps["nan"].startswith("UserError: step 1: rollout/logprob_gap=nan")
    assert odd_steps["still the same"]


def test_answers_to_something_else_are_refused(odd_steps):
    assert odd_steps["other prompt"].startswith("UserError: row 0: its prompt has")
    assert odd_steps["banned"].startswith("ValueError: row 0: the answer holds the token")


def too_long(actor: Any, config: Config) -> bytes:
    begin(actor, config)
    return to_bytes(stops(actor, config, sampled(actor, files(config), rows=2, empty=False)))


def test_an_answer_beyond_the_token_budget_says_so(folder):
    changes = {**PACKED, "actor__max_tokens_per_micro_batch": 90}
    said = run_rl(folder, 1, too_long, **changes)
    assert "actor.max_tokens_per_micro_batch=90 is less than the" in said, said
