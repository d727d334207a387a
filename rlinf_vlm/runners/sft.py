"""Supervised fine-tuning: train, evaluate, save; or only evaluate when there are no training rows."""

from __future__ import annotations

from rlinf_vlm.cluster.ray_cluster import Cluster
from rlinf_vlm.cluster.worker_group import WorkerGroup
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.preflight import Plan
from rlinf_vlm.runners.session import Clock, Session

ACTOR = "rlinf_vlm.workers.actor:ActorWorker"


def run(config: Config, plan: Plan, cluster: Cluster, session: Session) -> None:
    """One run on reserved resources."""
    actor = cluster.launch("actor", ACTOR, {"config": config, "batching": plan.batching, "shard": plan.shard})
    facts = actor.call("load")[0]
    session.say(
        f"{facts.parameters:,} parameters, {facts.trained_parameters:,} trained; attention {facts.attention}; "
        f"{facts.train_rows:,} training rows, {facts.eval_rows:,} evaluation rows"
    )
    if config.data.train_data_paths is None:
        evaluate(actor, session, finished_steps=0)
        return
    schedule = resolve_schedule(config, facts.train_rows)
    actor.call("start_training", schedule)
    for step in session.steps(schedule.total_steps):
        metrics = actor.call("train_step", step)[0]
        session.log_step(step, metrics)
        # Saved first: an evaluation that fails (a broken test row) does not cost the training.
        if session.saves_after(step, schedule.total_steps):
            save(actor, session, finished_steps=step + 1)
        if session.evaluates_after(step, schedule.total_steps):
            evaluate(actor, session, finished_steps=step + 1)


def evaluate(actor: WorkerGroup, session: Session, *, finished_steps: int) -> None:
    """Every row of the evaluation set, on all ranks."""
    clock = Clock()
    by_rank = actor.call("evaluate")
    session.log_evaluation(finished_steps, [record for part in by_rank for record in part], clock.seconds())


def save(actor: WorkerGroup, session: Session, *, finished_steps: int) -> None:
    """The weights after ``finished_steps`` steps."""
    clock = Clock()
    folder = session.checkpoints / f"global_step_{finished_steps}"
    actor.call("save", str(folder.absolute()), finished_steps)
    session.log_saved(finished_steps, folder, clock.seconds())
