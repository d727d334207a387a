from __future__ import annotations

from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import (
    Start,
    check_intervals,
    check_run_length,
    check_task,
    estimate_memory,
    resolve_batching,
    resolve_schedule,
    shard_size,
)
from rlinf_vlm.config.schema import Config
from rlinf_vlm.types import UserError


def config(**blocks: dict[str, Any]) -> Config:
    actor = {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}, **blocks.get("actor", {})}
    return load_config(
        {
            "runner": {"task_type": "sft", **blocks.get("runner", {"max_epochs": 1})},
            "data": {"train_data_paths": "a", **blocks.get("data", {})},
            "actor": actor,
        }
    )


def test_batching_by_hand():
    batching = resolve_batching(config(actor={"global_batch_size": 48}).actor, 3, packing=False)
    assert (batching.samples_per_rank, batching.micro_batches_per_rank, batching.max_tokens) == (16, 4, None)
    packed = resolve_batching(config(actor={"global_batch_size": 6}).actor, 3, packing=True)
    assert (packed.samples_per_rank, packed.micro_batches_per_rank, packed.max_tokens) == (2, None, 8192)


def test_batching_that_does_not_divide():
    actor = config(actor={"global_batch_size": 10, "micro_batch_size": 4}).actor
    with pytest.raises(
        UserError, match=r"actor.global_batch_size=10 .*2 ranks \* actor.micro_batch_size=4 = 8; set it to 8 or 16"
    ):
        resolve_batching(actor, 2, packing=False)
    with pytest.raises(UserError, match="set it to 3$"):
        resolve_batching(config(actor={"global_batch_size": 2}).actor, 3, packing=True)


def test_schedule_by_hand():
    made = config(runner={"max_epochs": 3}, actor={"global_batch_size": 8, "optim": {"lr_warmup_steps_ratio": 0.25}})
    schedule = resolve_schedule(made, 10)
    # 30 samples in batches of 8: 4 steps, the last one of 6 samples.
    assert (schedule.total_samples, schedule.total_steps, schedule.lr_horizon, schedule.warmup_steps) == (30, 4, 4, 1)
    assert schedule.steps_per_epoch == 1.25


def test_the_smaller_limit_ends_the_run():
    steps = [
        resolve_schedule(config(runner=runner, actor={"global_batch_size": 5}), 20).total_steps
        for runner in ({"max_epochs": 2, "max_steps": 3}, {"max_epochs": 2, "max_steps": 100}, {"max_steps": 7})
    ]
    assert steps == [3, 8, 7]


def test_a_run_needs_an_end():
    with pytest.raises(UserError, match="runner.max_epochs=-1 and runner.max_steps=-1"):
        check_run_length(config(runner={}).runner)


def test_warmup_has_to_end_before_the_horizon():
    made = config(runner={"max_steps": 10}, actor={"optim": {"lr_warmup_steps": 20}})
    with pytest.raises(UserError, match=r"actor.optim.lr_warmup_steps=20 .* horizon of 10 steps .*max_steps"):
        resolve_schedule(made, 5000)
    made = config(runner={"max_steps": 100}, actor={"optim": {"lr_warmup_steps": 20, "total_training_steps": 15}})
    with pytest.raises(UserError, match=r"horizon of 15 steps \(actor.optim.total_training_steps\)"):
        resolve_schedule(made, 5000)


def test_a_horizon_short_of_the_run_is_noted():
    made = config(runner={"max_steps": 100}, actor={"optim": {"total_training_steps": 60}})
    schedule = resolve_schedule(made, 5000)
    assert schedule.lr_horizon == 60 and "60" in schedule.notes[0] and "100" in schedule.notes[0]


@pytest.mark.parametrize(
    ("runner", "horizon"),
    [({"max_epochs": 6000, "max_steps": 3}, 6000), ({"max_epochs": 1}, 20), ({"max_epochs": 6000}, 117188)],
)
def test_the_guides_horizon_equal_to_max_epochs_covers_the_run(runner, horizon):
    optim = {"total_training_steps": runner["max_epochs"], "lr_warmup_steps": 200}
    schedule = resolve_schedule(config(runner=runner, actor={"global_batch_size": 256, "optim": optim}), 5000)
    assert schedule.lr_horizon == horizon


def test_evaluation_needs_rows():
    with pytest.raises(UserError, match=r"runner.val_check_interval=5 .* data.eval_data_paths=null"):
        check_intervals(config(runner={"max_epochs": 1, "val_check_interval": 5}))


@pytest.mark.parametrize("key", ["runner.replay_rollouts", "data.test_data_paths"])
def test_what_reinforcement_learning_alone_reads(key):
    block, name = key.split(".")
    given = {"runner": {"max_epochs": 1}, "data": {"eval_data_paths": "b"}}
    given[block] |= {name: "c"}
    with pytest.raises(UserError, match=rf"{key}='c' is read by task_type=reasoning only; set it to null"):
        check_task(config(**given))
    given["runner"] |= {"task_type": "reasoning"}
    check_task(config(**given))


def test_blank_images_need_evaluations_and_images():
    rows = {"eval_data_paths": "b"}
    ablation = {"max_epochs": 1, "eval_image_ablation": True}
    with pytest.raises(UserError, match=r"runner.eval_image_ablation=true .* runner.val_check_interval=-1"):
        check_intervals(config(runner=ablation, data=rows))
    check_intervals(config(runner={**ablation, "val_check_interval": 5}, data=rows))
    only = {"train_data_paths": None, **rows}
    check_intervals(config(runner=ablation, data=only))
    with pytest.raises(UserError, match=r"runner.eval_image_ablation=true .* data.image_keys=\[\]"):
        check_intervals(config(runner=ablation, data={**only, "image_keys": []}))
    # chat messages can bring images of their own
    check_intervals(config(runner=ablation, data={**only, "image_keys": [], "messages_key": "messages"}))


@pytest.mark.parametrize(
    ("fsdp", "size"),
    [
        ({"sharding_strategy": "full_shard"}, 8),
        ({"sharding_strategy": "shard_grad_op"}, 8),
        ({"sharding_strategy": "no_shard"}, 1),
        ({"sharding_strategy": "hybrid_shard"}, 4),
        ({"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 2}, 2),
    ],
)
def test_shard_size(fsdp, size):
    assert shard_size(config(actor={"fsdp_config": fsdp}).actor, world_size=8, ranks_per_node=4) == size


def test_shard_size_has_to_divide():
    actor = config(actor={"fsdp_config": {"sharding_strategy": "hybrid_shard", "hybrid_shard_size": 3}}).actor
    with pytest.raises(UserError, match=r"hybrid_shard_size=3 does not divide the 8 ranks"):
        shard_size(actor, world_size=8, ranks_per_node=4)


def test_memory_by_hand():
    made = config().actor
    sizes = {"parameters": 1000, "largest_block": 100, "outside": 20, "shard": 4}
    memory = estimate_memory(made, **sizes, trained=1000, reshard=True, accumulate=True)
    # fp32 masters 250 * 4, unsharded fp32 gradients 1000 * 4, Adam 2 * 250 * 4, gathered in bf16 two blocks and what is
    # outside of blocks: 220 * 2
    assert (memory.weights, memory.gradients, memory.optimizer, memory.gathered) == (1000, 4000, 2000, 440)
    assert memory.total == 7440
    frozen = estimate_memory(made, **sizes, trained=10, reshard=True, accumulate=True)
    assert (frozen.weights, frozen.gradients, frozen.optimizer, frozen.gathered) == (1000, 40, 2 * 3 * 4, 440)
    # all stay gathered in bf16; of the gradients a shard, and those of two blocks and outside on their way, in fp32
    lean = estimate_memory(made, **sizes, trained=1000, reshard=False, accumulate=False, activations=50)
    assert (lean.gathered, lean.gradients, lean.total) == (2000, (250 + 220) * 4, 1000 + 1880 + 2000 + 2000 + 50)


def test_a_resumed_run_has_what_is_left():
    made = config(runner={"max_steps": 6}, actor={"global_batch_size": 16})
    schedule = resolve_schedule(made, 64, Start(step=3, samples=48))
    assert (schedule.total_steps, schedule.total_samples, schedule.is_finished) == (6, 96, False)
    assert [schedule.samples_after(step, 16) for step in (3, 4, 6)] == [48, 64, 96]
    assert schedule.lr_horizon == resolve_schedule(made, 64).lr_horizon
    assert resolve_schedule(made, 64, Start(step=6, samples=96)).is_finished
    assert resolve_schedule(made, 64, Start(step=9, samples=144)).is_finished, "max_steps was lowered"
    assert not resolve_schedule(made, 64).is_finished


def test_an_epoch_that_does_not_divide_is_finished_at_its_end():
    made = config(runner={"max_epochs": 1}, actor={"global_batch_size": 16})
    whole = resolve_schedule(made, 70)
    assert (whole.total_steps, whole.samples_after(5, 16)) == (5, 70)
    assert resolve_schedule(made, 70, Start(step=5, samples=70)).is_finished
    longer = config(runner={"max_epochs": 2}, actor={"global_batch_size": 16})
    assert resolve_schedule(longer, 70, Start(step=5, samples=70)).total_steps == 10, "70 samples are left"


def test_steps_of_another_batch_size_count_as_they_were():
    made = config(runner={"max_epochs": 2}, actor={"global_batch_size": 8})
    schedule = resolve_schedule(made, 64, Start(step=3, samples=48))
    assert (schedule.total_steps, schedule.samples_after(13, 8)) == (13, 128)


def test_prompts_that_were_asked_again_do_not_shorten_a_resumed_run():
    made = config(runner={"task_type": "reasoning", "max_epochs": 2}, data={"rollout_batch_size": 16})
    whole = resolve_schedule(made, 64)
    schedule = resolve_schedule(made, 64, Start(step=3, samples=90))
    assert whole.total_steps == schedule.total_steps == 8
    assert schedule.start.samples == 90, "no prompt is asked twice"
    assert not resolve_schedule(made, 64, Start(step=7, samples=200)).is_finished
    assert resolve_schedule(made, 64, Start(step=8, samples=220)).is_finished


def test_the_best_by_an_evaluation_needs_evaluations():
    runner = {"max_steps": 6, "keep_last": 2, "keep_best": "eval/accuracy"}
    with pytest.raises(UserError, match="runner.keep_best=eval/accuracy needs evaluations"):
        check_intervals(config(runner=runner))
