"""Reinforcement learning on graded answers: sample, score, train, push; evaluate, save.

    prompts -> push weights -> collect answers -> record them -> divide among ranks -> train -> metrics
    recorded answers (runner.replay_rollouts) -> divide -> train: the same without engine and reward

A step is one batch of prompts, each answered group_size times, and n_minibatches optimizer updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlinf_vlm.cluster.ray_cluster import Cluster
from rlinf_vlm.cluster.worker_group import WorkerGroup, wait_all
from rlinf_vlm.config.resolve import Schedule, Start, resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.evaluation.training import training_metrics
from rlinf_vlm.rollout.batching import divide, judged, metrics, with_overlong
from rlinf_vlm.rollout.files import FOLDER, forget_after, read_rollouts, write_rollouts
from rlinf_vlm.rollout.records import Split
from rlinf_vlm.rollout.trained import TrainedAnswer, write_trained
from rlinf_vlm.runners.collecting import Collected, Collector, PromptStream, usable_groups
from rlinf_vlm.runners.evaluating import evaluate_rows
from rlinf_vlm.runners.preflight import Plan
from rlinf_vlm.runners.resume import check_same, first_weights
from rlinf_vlm.runners.rl_plan import ACTOR, REWARD, ROLLOUT
from rlinf_vlm.runners.saving import Checkpoints
from rlinf_vlm.runners.session import Clock, Session
from rlinf_vlm.runners.weight_sync import WeightSync
from rlinf_vlm.types import RunStopped, UserError

ACTOR_WORKER = "rlinf_vlm.workers.rl_actor:RLActor"
ROLLOUT_WORKER = "rlinf_vlm.workers.rollout:RolloutWorker"
REWARD_WORKER = "rlinf_vlm.workers.reward:RewardWorker"
LEFT_OUT = {"unjudged": "reward/failed", "dropped prompts": "data/dropped_prompts"}
"""What the progress line says where there is any."""
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""For engines: vLLM's own C++ warns of what it does right, such as where it allocates memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What samples and scores, and what keeps it at the actor's weights."""

    collector: Collector
    sync: WeightSync
    rows: Mapping[Split, int]
    """Of each split that there is."""


def run(config: Config, plan: Plan, cluster: Cluster, session: Session) -> None:
    """One run on reserved resources. Raises RunStopped when SIGTERM ended the training."""
    settings = {"config": config, "batching": plan.batching, "shard": plan.shard, "passes": plan.passes}
    origin = plan.origin
    weights = None if origin is None else str(origin.weights)
    began = first_weights(config, origin)
    actor = cluster.launch(ACTOR, ACTOR_WORKER, settings)
    samples = config.runner.replay_rollouts is None
    rollout = cluster.launch(ROLLOUT, ROLLOUT_WORKER, {"config": config}, env=QUIET) if samples else None
    facts, rows = _load(actor, weights, rollout, session, plan)
    engines = None
    if rollout is not None:
        reward = cluster.launch(REWARD, REWARD_WORKER, {"config": config})
        engines = _engines(config, plan, actor, rollout, reward, rows)
    if config.data.train_data_paths is None:
        assert engines is not None, "an evaluation needs an engine: checked before"
        evaluate(engines, config, session, finished_steps=0 if origin is None else origin.step)
        return
    resumed = None if origin is None else origin.resumed
    if resumed is not None:
        check_same(config, resumed, facts.train_rows)  # a hub dataset's rows are known only now
    schedule = resolve_schedule(config, facts.train_rows, Start() if origin is None else origin.start)
    actor.call("start_training", schedule, None if resumed is None else str(resumed.folder), began)
    if engines is not None and schedule.start.step:
        forget_after(session.folder / FOLDER, schedule.start.step)
    train(actor, engines, config, schedule, session, Checkpoints(config, schedule, actor, session, began))


def train(
    actor: WorkerGroup,
    engines: Engines | None,
    config: Config,
    schedule: Schedule,
    session: Session,
    checkpoints: Checkpoints,
) -> None:
    """All steps that are left, with an evaluation before the first."""
    done, total, cursor = schedule.start.step, schedule.total_steps, schedule.start.samples
    if schedule.is_finished:
        session.say(f"finished: nothing is left to train after step {done}")
    evaluated = session.owes_evaluation(total) or (done == 0 and config.runner.val_check_interval > 0)
    if engines is not None and evaluated:
        evaluate(engines, config, session, finished_steps=done, epoch=cursor / schedule.train_rows)
    for step in session.steps(done, total):
        clock = Clock()
        collected, pushed = _answers(engines, config, session, step, cursor)
        figures, trained = train_step(actor, config, step, collected)
        if engines is not None:
            write_trained(session.folder / FOLDER, done + 1, trained)
        cursor, done = collected.cursor, step + 1
        figures |= {**collected.metrics, "time/push": pushed, "time/step": clock.seconds()}
        figures["train/epoch"] = cursor / schedule.train_rows
        session.log_step(step, figures, shown(figures))
        checkpoints.collect(done)
        if session.saves_after(step, total):
            checkpoints.save(done, cursor)
        if engines is not None and session.evaluates_after(step, total):
            if not evaluated:
                checkpoints.finish(done)  # see ``sft.train``: a row that cannot be asked must not cost the training
            evaluate(engines, config, session, finished_steps=done, epoch=cursor / schedule.train_rows)
            evaluated = True
    if done < total and session.saves_after(done - 1, total):  # asked to stop while it evaluated
        checkpoints.save(done, cursor)
    checkpoints.finish(done)
    if done < total:
        unsaved = "" if session.saves_after(done - 1, total) else "; not saved, as runner.save_interval=-1"
        raise RunStopped(f"after step {done} of {total}{unsaved}")


def train_step(
    actor: WorkerGroup, config: Config, step: int, collected: Collected
) -> tuple[dict[str, float], list[TrainedAnswer]]:
    """The updates of one step on its usable answers: metrics of answers and training, and what it made of each token.

    No update is made, and train/updates is 0, where dynamic sampling found no group that teaches anything.
    """
    algorithm = config.algorithm
    used = [item for item in judged(collected.scored) if item.rollout.group in collected.groups]
    saturated = algorithm.dynamic_sampling.enabled and judged(collected.scored)
    if not used and not saturated:
        raise UserError(
            f"step {step + 1}: no answer to train on: of {len(collected.scored)} answers none could be judged, and "
            f"{len(collected.dropped)} prompts could not be asked{_first_reason(collected)}; mend the data"
        )
    limit = algorithm.sampling_params.max_new_tokens
    rewarded = with_overlong(used, limit, algorithm.overlong)
    answers, shares = divide(rewarded, world_size=actor.world_size, n_minibatches=algorithm.n_minibatches)
    ranks = actor.call_each("train_rollouts", [(step, answers, share) for share in shares])
    figures = {
        **metrics(with_overlong(collected.scored, limit, algorithm.overlong)),
        **training_metrics(collected.scored, algorithm.reflection_words),
        **ranks[0].metrics,
    }
    return figures, [answer for rank in ranks for answer in rank.answers]


def evaluate(
    engines: Engines, config: Config, session: Session, *, finished_steps: int, epoch: float | None = None
) -> None:
    """Every evaluation row, and every test row: a greedy answer, and sampled ones where they are asked for.

    epoch: passes over the training rows by now, where that is known.
    """
    engines.sync.push(finished_steps)
    taken = {} if epoch is None else {"train/epoch": epoch}
    splits: tuple[Literal["eval", "test"], ...] = ("eval", "test")
    found = {
        split: evaluate_rows(engines.collector, config, split, engines.rows[split])
        for split in splits
        if split in engines.rows
    }
    for split, (records, figures) in found.items():  # after both: a run that is killed between repeats both
        session.log_evaluation(finished_steps, records, {**figures, **taken}, split)


def shown(figures: dict[str, float]) -> str:
    """What the progress line says of a step."""
    gap = figures.get("rollout/logprob_gap")
    return (
        f"reward {figures['rollout/reward_mean']:.3f}  length {figures['rollout/response_length']:.0f}  "
        f"loss {figures['train/loss']:.4f}  grad {figures['train/grad_norm']:.3f}"
        + ("" if gap is None else f"  gap {gap:.1e}")
        + "".join(f"  {name} {figures[key]:.0f}" for name, key in LEFT_OUT.items() if figures.get(key))
        + ("" if figures.get("train/updates", 1) else "  no update")
        + f"  {figures['time/step']:.1f} s"
    )


def _load(
    actor: WorkerGroup, weights: str | None, rollout: WorkerGroup | None, session: Session, plan: Plan
) -> tuple[Any, Mapping[Split, int]]:
    """Both sides' models; the actor's facts, and the rows of each split that the engines can be asked of."""
    loading = [actor.start("load", weights)]
    if rollout is not None:
        if plan.rl is not None and plan.rl.transport == "ipc":
            wait_all(loading)  # an engine measures the GPU's free memory while it starts
        loading.append(rollout.start("load"))
    facts, *engine = (found[0] for found in wait_all(loading))
    session.say(
        f"{facts.parameters:,} parameters, {facts.trained_parameters:,} trained; attention {facts.attention}; "
        f"{facts.train_rows:,} training rows, {facts.eval_rows:,} evaluation rows"
        + "".join(f", {found.rows['test']:,} test rows" for found in engine[:1] if "test" in found.rows)
    )
    for found in engine:
        session.say(f"engine: {found}")
    return facts, engine[0].rows if engine else {}


def _engines(
    config: Config,
    plan: Plan,
    actor: WorkerGroup,
    rollout: WorkerGroup,
    reward: WorkerGroup,
    rows: Mapping[Split, int],
) -> Engines:
    assert plan.rl is not None, "made for task_type reasoning"
    size = max(1, len(plan.placements[1].processes[0].devices))
    stream = PromptStream(config, max(1, rows.get("train", 0)))
    return Engines(
        collector=Collector(config, rollout, reward, stream),
        sync=WeightSync(actor, rollout, plan.rl, gpus_per_engine=size),
        rows=rows,
    )


def _answers(
    engines: Engines | None, config: Config, session: Session, step: int, cursor: int
) -> tuple[Collected, float]:
    """The step's answers, new or recorded, and the seconds of the push before them."""
    if engines is None:
        scored = read_rollouts(Path(str(config.runner.replay_rollouts)), step + 1)
        asked = {item.rollout.group for item in scored}
        replayed = Collected(
            scored=tuple(scored),
            groups=usable_groups(scored, config.algorithm.dynamic_sampling),
            cursor=max((cursor - 1, *asked)) + 1,
            dropped=(),
            metrics={},
        )
        return replayed, 0.0
    seconds = engines.sync.push(step)
    collected = engines.collector.collect(cursor)
    engines.sync.rest()
    write_rollouts(session.folder / FOLDER, step + 1, collected.scored)
    return collected, seconds


def _first_reason(collected: Collected) -> str:
    return f"; the first: {collected.dropped[0].reason}" if collected.dropped else ""
