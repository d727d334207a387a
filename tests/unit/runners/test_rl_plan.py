"""Reinforcement learning before it starts: what is refused, in one line, and how components are placed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlinf_vlm.cluster.placement import Topology, parse_component_placement
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import Start, resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.rl_checks import check_rl
from rlinf_vlm.runners.rl_plan import eval_samplings, place_components, plan_rl, train_sampling
from rlinf_vlm.types import UserError


def tree(**blocks: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "runner": {"task_type": "reasoning", "max_steps": 3},
        "data": {"train_data_paths": "a", "dataset_name": "geo3k", "max_prompt_length": 512},
        "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
        "algorithm": {},
    }
    for name, block in blocks.items():
        config[name] = {**config.get(name, {}), **block}
    return config


BEST_LOSS = {"keep_best": "eval/loss", "keep_last": 2, "val_check_interval": 1, "save_interval": 1}


def lora(*, dropout: float) -> dict[str, Any]:
    return {"model": {**tree()["actor"]["model"], "is_lora": True, "lora_dropout": dropout}}


def config(**blocks: Any) -> Config:
    return load_config(tree(**blocks))


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"algorithm": {"adv_type": "gae"}}, "needs a critic"),
        ({"algorithm": {"adv_type": "grpoo"}}, "did you mean 'grpo'?"),
        ({"algorithm": {"loss_type": "ppo_clip"}}, "unknown loss_type 'ppo_clip'"),
        ({"algorithm": {"loss_type": "nowhere:thing"}}, "no module named 'nowhere'"),
        ({"algorithm": {"group_size": 1}}, "set group_size to at least 2"),
        ({"algorithm": {"n_minibatches": 65}}, "data.rollout_batch_size=64"),
        ({"algorithm": {"sampling_params": {"temperature": 0}}}, "temperature=0"),
        ({"algorithm": {"sampling_params": {"top_p": 0.9}}}, "top_p=0.9"),
        ({"algorithm": {"eval_sampling_params": {"n": 4, "temperature": 0}}}, "4 equal answers"),
        ({"algorithm": {"overlong": {"buffer": 2000}}}, "max_new_tokens=1024"),
        ({"data": {"max_prompt_length": None}}, "data.max_prompt_length=null"),
        ({"algorithm": {"sampling_params": {"max_new_tokens": 8000}}}, "set that to at least 8512"),
        ({"actor": {"global_batch_size": 100, **tree()["actor"]}}, "is not the 512 answers of a step"),
        ({"actor": lora(dropout=0.05)}, "actor.model.lora_dropout=0.05"),
        ({"reward": {"name": "maths"}}, "did you mean 'math'?"),
        ({"reward": {"options": {"tolerence": 1}}}, "tolerence"),
        ({"env": {"name": "geo3k"}}, "env.name: unknown environment 'geo3k'; did you mean 'geo3k_tool'?"),
        ({"env": {"name": "nowhere:build_env"}}, "env.name: 'nowhere:build_env': no module named 'nowhere'"),
        ({"env": {"name": "tests.scripted_envs:SHADES"}}, "has no attribute 'SHADES'"),
        ({"env": {"name": "tests.scripted_envs:time"}}, "is a module; name a function build_env(sample, args)"),
        (
            {"env": {"name": "tests.scripted_envs:EnvSample"}},
            "env.name='tests.scripted_envs:EnvSample' with env.options={}",
        ),
        (
            {"env": {"name": "tests.scripted_envs:without_server"}},
            "env.name='tests.scripted_envs:without_server' with env.options={}: ConnectionRefusedError: no server",
        ),
        ({"env": {"options": {"tool": False}}}, "single_turn takes none, but has tool"),
        (
            {"env": {"name": "geo3k_tool", "eval_options": {"tol": False}}},
            "env.eval_options.tol=False: unknown key; did you mean tool?",
        ),
        ({"env": {"max_new_tokens": 2000}}, "env.max_new_tokens=2000 of a turn is more than"),
        ({"env": {"max_turns": 16}}, "(env.max_turns - 1) x env.max_observation_tokens=7680 make 9216 tokens"),
        ({"runner": {**tree()["runner"], "replay_rollouts": "/nowhere"}}, "no such folder"),
        ({"runner": {**tree()["runner"], **BEST_LOSS}, "data": {"eval_data_paths": "b"}}, "keep_best='eval/loss'"),
        ({"runner": {**tree()["runner"], "eval_image_ablation": True}}, "task_type=sft only"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(blocks, expected):
    with pytest.raises(UserError) as told:
        check_rl(config(**blocks))
    assert expected in str(told.value)
    assert "\n" not in str(told.value)


def test_a_plain_config_is_fine():
    check_rl(config())
    check_rl(config(actor={"global_batch_size": 256, **tree()["actor"]}, algorithm={"n_minibatches": 2}))
    check_rl(config(algorithm={"adv_type": "reinpp", "group_size": 1}))
    check_rl(config(actor=lora(dropout=0.0)))


def test_replay_takes_no_evaluation(tmp_path):
    (tmp_path / "step_1.jsonl").touch()
    runner = {**tree()["runner"], "replay_rollouts": str(tmp_path)}
    check_rl(config(runner=runner))
    with pytest.raises(UserError, match="without an engine"):
        check_rl(config(runner={**runner, "val_check_interval": 1}, data={"eval_data_paths": "b"}))


def test_a_folder_to_replay_has_recorded_answers(tmp_path):
    with pytest.raises(UserError, match="holds no step_N.jsonl"):
        check_rl(config(runner={**tree()["runner"], "replay_rollouts": str(tmp_path)}))


def test_every_step_that_is_left_has_to_be_recorded(tmp_path):
    made = config(
        runner={**tree()["runner"], "replay_rollouts": str(tmp_path)}, data={**tree()["data"], "rollout_batch_size": 4}
    )
    placements = place_components(
        made, parse_component_placement({"actor": 0}, Topology(accelerators=(0,), cpu_workers_per_node=1))
    )
    (tmp_path / "step_2.jsonl").touch()
    (tmp_path / "step_3.jsonl").touch()
    plan_rl(made, placements, resolve_schedule(made, 64, Start(step=1, samples=4)))
    with pytest.raises(UserError, match=r"no step_1\.jsonl \(recorded: 2 steps, the last 3\)"):
        plan_rl(made, placements, resolve_schedule(made, 64))


def laid_out(
    rules: dict[str, object], gpus: int = 4, slots: int = 1, change: Callable[[dict[str, Any]], Any] | None = None
) -> tuple[Any, Any]:
    built = tree()
    if change is not None:
        change(built)
    loaded = load_config(built)
    topology = Topology(accelerators=(gpus,), cpu_workers_per_node=slots)
    placements = place_components(loaded, parse_component_placement(rules, topology))
    return placements, plan_rl(loaded, placements)


@pytest.mark.parametrize(
    ("rules", "gpus", "slots", "transport", "sleeps"),
    [
        ({"actor,rollout": "all"}, 4, 1, "ipc", True),
        ({"actor": "0-3", "rollout": "2-3"}, 4, 1, "ipc", True),
        ({"actor": "0-2", "rollout": "3"}, 4, 1, "nccl", False),
        ({"actor,rollout": "0"}, 0, 1, "shm", False),
        ({"actor": "0", "rollout": "1"}, 0, 2, "shm", False),
    ],
)
def test_weights_go_the_way_that_the_placement_has(rules, gpus, slots, transport, sleeps):
    placements, plan = laid_out(rules, gpus, slots)
    assert [placement.name for placement in placements] == ["actor", "rollout", "reward"]
    assert (plan.transport, plan.sleeps) == (transport, sleeps)
    assert not any(process.is_gpu for process in placements[2].processes)
    assert (plan.prompts, plan.answers) == (64, 512)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"actor": "all"}, "runs ['actor', 'rollout']"),
        ({"actor": "0-1", "rollout": "1-2"}, "shares 1 of its 2 GPUs"),
        ({"actor,rollout": "all", "critic": "all"}, "critic"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(rules, expected):
    with pytest.raises(UserError) as told:
        laid_out(rules)
    assert expected in str(told.value)


def test_engines_of_several_gpus():
    def two(built: dict[str, Any]) -> None:
        built["rollout"] = {"tensor_parallel_size": 2}

    def three(built: dict[str, Any]) -> None:
        built["rollout"] = {"tensor_parallel_size": 3}

    placements, plan = laid_out({"actor,rollout": "all"}, change=two)
    assert [process.devices for process in placements[1].processes] == [(0, 1), (2, 3)]
    assert plan.engines == 2
    placements, _ = laid_out({"actor": "0-1", "rollout": "2-3:0"}, change=two)
    assert [process.devices for process in placements[1].processes] == [(2, 3)]
    with pytest.raises(UserError, match="does not divide the rollout's 4 GPUs"):
        laid_out({"actor,rollout": "all"}, change=three)
    placements, plan = laid_out({"actor": "0", "rollout": "1-2"}, gpus=0, slots=3, change=two)
    assert [(process.devices, process.is_gpu) for process in placements[1].processes] == [((1, 2), False)]
    assert (plan.engines, plan.transport) == (1, "shm")
    with pytest.raises(UserError, match="does not divide the rollout's 1 worker slots"):
        laid_out({"actor,rollout": "0"}, gpus=0, change=two)


def test_the_reward_goes_where_it_is_placed_on_cpus():
    placements, _ = laid_out({"actor,rollout": "all", "reward": "0-1"})
    assert [process.devices for process in placements[2].processes] == [(), ()]


def test_replay_needs_the_actor_alone(tmp_path):
    def replays(built: dict[str, Any]) -> None:
        built["runner"]["replay_rollouts"] = str(tmp_path)

    placements, plan = laid_out({"actor,rollout": "all"}, change=replays)
    assert [placement.name for placement in placements] == ["actor"]
    assert plan.transport is None


def test_what_is_sampled():
    loaded = config(
        algorithm={
            "group_size": 4,
            "sampling_params": {"temperature": 0.7, "max_new_tokens": 64},
            "eval_sampling_params": {"n": 8, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 32},
        }
    )
    train = train_sampling(loaded)
    assert (train.n, train.temperature, train.max_new_tokens, train.top_p) == (4, 0.7, 64, 1.0)
    greedy, sampled = eval_samplings(loaded)
    assert (greedy.n, greedy.temperature, greedy.max_new_tokens) == (1, 0.0, 32)
    assert sampled is not None
    assert (sampled.n, sampled.temperature, sampled.top_p, sampled.max_new_tokens) == (8, 0.6, 0.9, 32)
    assert eval_samplings(config())[1] is None
