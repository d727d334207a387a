"""Supervised fine-tuning: train, evaluate, save; or only evaluate when there are no training rows."""

from __future__ import annotations

from rlinf_vlm.cluster.ray_cluster import Cluster
from rlinf_vlm.cluster.worker_group import WorkerGroup
from rlinf_vlm.config.resolve import Schedule, Start, resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.evaluation.answers import summarise, with_blank
from rlinf_vlm.runners.preflight import Plan
from rlinf_vlm.runners.resume import check_same
from rlinf_vlm.runners.saving import Checkpoints
from rlinf_vlm.runners.session import Clock, Session
from rlinf_vlm.types import RunStopped

ACTOR = "rlinf_vlm.workers.actor:ActorWorker"


def run(config: Config, plan: Plan, cluster: Cluster, session: Session) -> None:
    """One run on reserved resources. Raises RunStopped when SIGTERM ended the training."""
    settings = {"config": config, "batching": plan.batching, "shard": plan.shard, "passes": plan.passes}
    actor = cluster.launch("actor", ACTOR, settings)
    origin = plan.origin
    facts = actor.call("load", None if origin is None else str(origin.weights))[0]
    session.say(
        f"{facts.parameters:,} parameters, {facts.trained_parameters:,} trained; attention {facts.attention}; "
        f"{facts.train_rows:,} training rows, {facts.eval_rows:,} evaluation rows"
    )
    if config.data.train_data_paths is None:
        evaluate(actor, config, session, finished_steps=0 if origin is None else origin.step)
        return
    resumed = None if origin is None else origin.resumed
    if resumed is not None:
        check_same(config, resumed, facts.train_rows)  # a hub dataset's rows are known only now
    schedule = resolve_schedule(config, facts.train_rows, Start() if origin is None else origin.start)
    actor.call("start_training", schedule, None if resumed is None else str(resumed.folder))
    train(actor, config, schedule, session)


def train(actor: WorkerGroup, config: Config, schedule: Schedule, session: Session) -> None:
    """All steps that are left."""
    checkpoints = Checkpoints(config, schedule, actor, session)
    done, total = schedule.start.step, schedule.total_steps
    if schedule.is_finished:
        session.say(f"finished: nothing is left to train after step {done}")
    evaluated = session.owes_evaluation(total)
    if evaluated:
        evaluate(actor, config, session, finished_steps=done)
    for step in session.steps(done, total):
        figures = actor.call("train_step", step)[0]
        session.log_step(step, figures, shown(figures))
        done = step + 1
        checkpoints.collect(done)
        # Saved first: an evaluation that fails (a broken test row) does not cost the training. As a failure ends the
        # processes that write, the first evaluation, which meets every row, waits until they have written.
        if session.saves_after(step, total):
            checkpoints.save(done)
        if session.evaluates_after(step, total):
            if not evaluated:
                checkpoints.finish(done)
            evaluate(actor, config, session, finished_steps=done)
            evaluated = True
    if done < total and session.saves_after(done - 1, total):  # asked to stop while it evaluated
        checkpoints.save(done)
    checkpoints.finish(done)
    if done < total:
        unsaved = "" if session.saves_after(done - 1, total) else "; not saved, as runner.save_interval=-1"
        raise RunStopped(f"after step {done} of {total}{unsaved}")


def evaluate(actor: WorkerGroup, config: Config, session: Session, *, finished_steps: int) -> None:
    """Every row of the evaluation set, on all ranks; again with blank images where that is asked for."""
    clock = Clock()
    records = [record for part in actor.call("evaluate") for record in part]
    if config.runner.eval_image_ablation:
        records = with_blank(records, [record for part in actor.call("evaluate", True) for record in part])
    session.log_evaluation(finished_steps, records, {**summarise(records), "time/eval": clock.seconds()})


def shown(figures: dict[str, float]) -> str:
    """What the progress line says of a step."""
    return (
        f"loss {figures['train/loss']:.4f}  grad {figures['train/grad_norm']:.3f}  lr {figures['train/lr']:.2e}  "
        f"{figures['perf/tokens_per_second']:,.0f} tok/s"
    )
