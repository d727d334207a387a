"""One step of a run, done again on a few of its recorded answers, with everything in it kept.

    run folder: config.yaml, rollouts/step_N.jsonl, checkpoint N - 1 -> ``RLActor``, watched -> StepRecord

What trains is the trainer's own actor, with its optimizer state, learning rate and reference: the same as in the run,
but for the answers left out. It runs as one rank on the CPU. Recorded is what goes into and comes out of its objective,
and one weight around each update. Only Reinforce++ as ``check_algorithm`` describes it. Not here: arithmetic.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from rlinf_vlm.checkpoints import checkpoint_folder
from rlinf_vlm.cluster.placement import Topology
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import Start, resolve_schedule
from rlinf_vlm.config.rl import AlgorithmConfig
from rlinf_vlm.config.schema import Config
from rlinf_vlm.models.folder import read_model_folder
from rlinf_vlm.rollout.batching import divide, judged, with_overlong
from rlinf_vlm.rollout.files import read_rollouts
from rlinf_vlm.rollout.records import ScoredRollout, StepAnswers
from rlinf_vlm.runners.preflight import make_plan
from rlinf_vlm.runners.resume import find_origin, first_weights
from rlinf_vlm.types import IGNORE_INDEX, RankContext, UserError
from rlinf_vlm.workers.rl_batch import AnswerBatch
from toolkits.walkthrough.record import Answer, Place, Settings, StepRecord, Tensor, Update
from toolkits.walkthrough.watched import Watched, WatchedActor

LETTERS = {
    "input_ids": "T",
    "labels": "T",
    "position_ids": "3, T",
    "cu_seqlens": "S + 1",
    "image_positions": "I",
    "image_feature_index": "I",
    "pixel_values": "patches, values of a patch",
    "image_grid_thw": "U, 3",
    "lengths": "S",
    "places": "N",
    "engine_logprobs": "N",
    "counted": "N",
}


def replay(run: Path, *, step: int, count: int, updates: int) -> StepRecord:
    """``step`` (from 1) of the run in the folder ``run``, on ``count`` of its answers in ``updates`` updates.

    Raises UserError where the run has not recorded what this needs, or is not of Reinforce++.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no config.yaml in it; give the folder of a run")
    of_run = load_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    algorithm = of_run.algorithm
    check_algorithm(algorithm)
    limit = algorithm.sampling_params.max_new_tokens
    chosen = with_overlong(choose(read_rollouts(run, step), count), limit, algorithm.overlong)
    config = small_config(of_run, run, step, updates)
    origin, _ = find_origin(config, neighbours=False)
    folder = read_model_folder(config.actor.model.model_path)
    plan = make_plan(config, Topology(accelerators=(0,)), folder, None, None, origin=origin)
    actor = WatchedActor(one_rank(), config, plan.batching, plan.shard, plan.passes)
    try:
        facts = actor.load(None if origin is None else str(origin.weights))
        start = Start() if origin is None else origin.start
        resumed = None if origin is None or origin.resumed is None else str(origin.resumed.folder)
        schedule = resolve_schedule(of_run, facts.train_rows, start)
        actor.start_training(schedule, resumed, first_weights(config, origin))
        watched = actor.watch()
        answers, shares = divide(chosen, world_size=1, n_minibatches=updates)
        metrics = actor.train_rollouts(step - 1, answers, shares[0]).metrics
        ordered = _ordered(chosen, answers)
        return StepRecord(
            experiment=of_run.runner.logger.experiment_name,
            step=step,
            settings=_settings(config, metrics["train/lr"], actor.decay()),
            answers=_answers(ordered, watched, actor.tokenizer),
            updates=_updates(watched),
            tensors=_tensors(watched.batches[0]),
            first_sample=_first_sample(watched.batches[0], actor.tokenizer),
            weight_name=actor.weight_name(),
            metrics={name: float(value) for name, value in metrics.items() if not name.startswith(("time/", "perf/"))},
        )
    finally:
        actor.close()


def check_algorithm(algorithm: AlgorithmConfig) -> None:
    """UserError unless it is Reinforce++ as the walk-through tells it."""
    correction = algorithm.rollout_correction
    expected = {
        "adv_type": "reinpp",
        "loss_type": "clipped",
        "loss_agg_func": "token-mean",
        "clip_ratio_c": None,
        "entropy_bonus": 0.0,
        "kl_in": "reward",
    }
    for name, value in expected.items():
        if getattr(algorithm, name) != value and not (name == "kl_in" and not algorithm.kl_beta):
            raise UserError(
                f"algorithm.{name}={getattr(algorithm, name)!r}: the walk-through is of Reinforce++, with {name}="
                f"{value!r}; give a run of geometry_reinforce_pp or geo3k_reinforce_pp"
            )
    if correction.enabled and (correction.level, correction.mode) != ("token", "truncate"):
        raise UserError(
            f"algorithm.rollout_correction: level={correction.level}, mode={correction.mode}: the walk-through is of "
            "level=token, mode=truncate"
        )
    if algorithm.overlong.filter_truncated:
        raise UserError(
            "algorithm.overlong.filter_truncated=true leaves answers out of the loss, of which the walk-through says "
            "nothing; give a run without it"
        )


def choose(scored: Sequence[ScoredRollout], count: int) -> list[ScoredRollout]:
    """``count`` answers in stream order, half of them right where there are so many: the first of each that have
    tokens. Raises UserError for fewer."""
    usable = sorted(
        (item for item in judged(scored) if item.rollout.token_ids),
        key=lambda item: (item.rollout.group, item.rollout.member),
    )
    if len(usable) < count:
        raise UserError(f"--answers={count}, but the step has {len(usable)} judged answers; give fewer")
    right = [item for item in usable if item.reward >= 1][: count // 2]
    wrong = [item for item in usable if item.reward < 1][: count - len(right)]
    rest = [item for item in usable if item not in right and item not in wrong]
    chosen = [*right, *wrong, *rest[: count - len(right) - len(wrong)]]
    return sorted(chosen, key=lambda item: (item.rollout.group, item.rollout.member))


def small_config(config: Config, run: Path, step: int, updates: int) -> Config:
    """The run's config for one rank on the CPU, one micro-batch an update, from the checkpoint before ``step``."""
    tree = config.model_dump()
    tree["cluster"] |= {"num_nodes": 1, "component_placement": {"actor": 0}, "node_groups": ()}
    tree["runner"] |= {"val_check_interval": -1, "save_interval": -1, "keep_best": None, "replay_rollouts": str(run)}
    if step > 1:
        folder = checkpoint_folder(run / config.runner.logger.experiment_name / "checkpoints", step - 1)
        if not folder.is_dir():
            raise UserError(
                f"--step={step} begins with the weights of {folder}, which are not there; let the run save them "
                f"(runner.save_interval={step - 1}), or give --step 1"
            )
        tree["runner"] |= {"resume_dir": str(folder), "ckpt_path": None}
    tree["data"] |= {"num_workers": 0}
    tree["algorithm"] |= {"n_minibatches": updates}
    del tree["actor"]["global_batch_size"]
    tree["actor"] |= {"packing": False, "balance_tokens": "auto", "micro_batch_size": 1024}
    tree["actor"]["fsdp_config"] |= {"sharding_strategy": "no_shard", "hybrid_shard_size": None}
    return load_config(tree)


def one_rank() -> RankContext:
    """A group of one process on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return RankContext(
        rank=0, world_size=1, local_rank=0, local_world_size=1, master_addr="127.0.0.1", master_port=port, device="cpu"
    )


def _ordered(chosen: Sequence[ScoredRollout], answers: StepAnswers) -> list[ScoredRollout]:
    """The answers in the order of the update: with one rank, that of the stream."""
    lengths = tuple(len(item.rollout.token_ids) for item in chosen)
    assert lengths == answers.lengths, "one rank takes the groups in their order"
    return list(chosen)


def _settings(config: Config, rate: float, decay: float) -> Settings:
    algorithm, optim = config.algorithm, config.actor.optim
    correction = algorithm.rollout_correction
    return Settings(
        kl_beta=algorithm.kl_beta,
        kl_penalty_type=algorithm.kl_penalty_type,
        clip_ratio_low=algorithm.clip_ratio_low,
        clip_ratio_high=algorithm.clip_ratio_high,
        upper=correction.upper if correction.enabled else None,
        clip_grad=optim.clip_grad,
        lr=rate,
        adam_beta1=optim.adam_beta1,
        adam_beta2=optim.adam_beta2,
        adam_eps=optim.adam_eps,
        weight_decay=decay,
        temperature=algorithm.sampling_params.temperature,
    )


def _answers(chosen: Sequence[ScoredRollout], watched: Watched, tokenizer: Any) -> tuple[Answer, ...]:
    lengths = [len(item.rollout.token_ids) for item in chosen]

    def split(parts: Sequence[torch.Tensor]) -> list[tuple[float, ...]]:
        if not parts:
            return [()] * len(lengths)
        return [tuple(part.tolist()) for part in torch.cat([part.detach().cpu() for part in parts]).split(lengths)]

    # Of the first update, where there is no other, its own pass is that of before.
    old = split(
        [tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs for tokens, _, _ in watched.losses]
    )
    reference = split([first for _, first in watched.scored])
    kl_rewards = split([] if watched.token_rewards is None else [watched.token_rewards])
    advantages = split([tokens.advantages for tokens, _, _ in watched.losses])
    return tuple(
        Answer(
            row=item.rollout.row,
            question=item.rollout.question,
            gold=item.rollout.answer,
            text=item.rollout.text,
            reward=item.reward,
            prompt_length=item.rollout.prompt_length,
            pieces=tuple(tokenizer.decode([token]) for token in item.rollout.token_ids),
            engine=item.rollout.logprobs,
            old=old[place],
            reference=reference[place],
            kl_rewards=kl_rewards[place],
            advantages=advantages[place],
        )
        for place, item in enumerate(chosen)
    )


def _updates(watched: Watched) -> tuple[Update, ...]:
    found, first = [], 0
    for (tokens, denominator, loss), noted in zip(watched.losses, watched.updates, strict=True):
        count = tokens.lengths.numel()
        found.append(
            Update(
                first=first,
                answers=count,
                new=tuple(tokens.logprobs.detach().tolist()),
                denominator=denominator,
                loss=float(loss.loss.detach()),
                **noted,
            )
        )
        first += count
    return tuple(found)


def _tensors(batch: AnswerBatch) -> tuple[Tensor, ...]:
    micro = batch.micro_batch
    named = {
        **{name: getattr(micro, name) for name in list(LETTERS)[:6]},
        **micro.image_inputs,
        **{name: getattr(batch, name) for name in ("lengths", "places", "engine_logprobs", "counted")},
    }
    return tuple(
        Tensor(
            name=name,
            shape=tuple(value.shape),
            letters=LETTERS.get(name, "see the processor"),
            dtype=str(value.dtype).removeprefix("torch."),
        )
        for name, value in named.items()
    )


def _first_sample(batch: AnswerBatch, tokenizer: Any) -> tuple[Place, ...]:
    micro = batch.micro_batch
    length = micro.lengths[0]
    return tuple(
        Place(
            piece=tokenizer.decode([int(micro.input_ids[t])]),
            supervised=int(micro.labels[t]) != IGNORE_INDEX,
            position=tuple(micro.position_ids[:, t].tolist()),
        )
        for t in range(length)
    )
