"""A validated config, run: checks, plan, cluster, runner. What the entry script calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path

from rlinf_vlm.checkpoints import Checkpoint
from rlinf_vlm.cluster.environment import set_ray_environment
from rlinf_vlm.cluster.placement import Topology
from rlinf_vlm.config.resolve import Start, resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.registry import load_dotted
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import Plan, check_config, local_topology, make_plan, node_groups
from rlinf_vlm.runners.resume import check_same, find_origin
from rlinf_vlm.runners.run_folder import check_writable, next_start, occupied, take_over
from rlinf_vlm.runners.saving import remove_unfinished
from rlinf_vlm.runners.session import Session, checkpoints_of, owes_evaluation
from rlinf_vlm.runners.stopping import sheltered
from rlinf_vlm.tracking import Terminal
from rlinf_vlm.types import RunStopped

RUNNERS = {"sft": "rlinf_vlm.runners.sft:run", "reasoning": "rlinf_vlm.runners.rl:run"}


def launch(config: Config, *, folder_is_new: bool = False, at_end: Callable[[Path], None] | None = None) -> None:
    """Runs ``config`` to its end, or prints its plan. Raises UserError for a mistake, before any process starts.

    folder_is_new: runner.logger.log_path was made up for this start, so a resumed run goes on in its own folder.
    at_end: given the run folder after a run that came to its end, or was asked to stop.
    With RAY_ADDRESS set the machines are known only after joining the cluster, so there the placement is checked then.
    """
    origin, notes = find_origin(config, neighbours=folder_is_new)
    launched = Path(config.runner.logger.log_path)
    resumed = None if origin is None else origin.resumed
    if resumed is not None and folder_is_new:
        config = with_log_path(config, resumed.run_folder)
    model, train_rows, eval_rows, test_rows = check_config(config)
    if resumed is not None:
        notes += check_same(config, resumed, train_rows)
        notes.append(f"goes on after {resumed.folder} in {config.runner.logger.log_path}")
    joins = bool(os.environ.get("RAY_ADDRESS")) and not config.runner.dry_run

    def plan_on(topology: Topology) -> Plan:
        return make_plan(config, topology, model, train_rows, eval_rows, test_rows, origin)

    plan = None if joins else plan_on(local_topology(config))
    if plan is not None:
        with Terminal(0, None) as terminal:
            terminal.say(plan_text(config, plan))
    if config.runner.dry_run:
        say_each(notes)
        return
    folder = Path(config.runner.logger.log_path)
    with occupied(folder):
        # First of all, since it may be what fills the disk.
        left = remove_unfinished(checkpoints_of(config))
        check_writable(folder)
        number = next_start(folder)
        take_over(launched, folder, number)
        say_each([*notes, *(f"removed, was not finished being written: {path}" for path in left)])
        if resumed is not None and train_rows is not None and is_finished(config, resumed, train_rows):
            return
        try:
            _run(config, plan_on, resumed, number)
        except RunStopped:
            if at_end is not None:
                at_end(folder)
            raise
        if at_end is not None:
            at_end(folder)


def _run(config: Config, plan_on: Callable[[Topology], Plan], resumed: Checkpoint | None, number: int) -> None:
    """The cluster and the runner; ``number``: of this start in its run folder."""
    set_ray_environment()
    from rlinf_vlm.cluster.ray_cluster import connect  # Ray is imported only once everything else is in order

    settings = config.cluster
    joins = bool(os.environ.get("RAY_ADDRESS"))
    with ExitStack() as stack:
        with nullcontext() if joins else sheltered():  # joining starts no processes, and can take minutes
            cluster = stack.enter_context(
                connect(
                    num_nodes=settings.num_nodes,
                    node_wait_timeout_s=settings.node_wait_timeout_s,
                    cpu_workers_per_node=settings.cpu_workers_per_node,
                    node_groups=node_groups(config),
                )
            )
        plan = plan_on(cluster.topology)
        cluster.reserve(plan.placements, settings.node_wait_timeout_s)
        with Session(config, plan_text(config, plan), start=number, resumed=resumed) as session:
            load_dotted(RUNNERS[config.runner.task_type])(config, plan, cluster, session)


def with_log_path(config: Config, folder: Path) -> Config:
    """``config`` with another run folder."""
    logger = config.runner.logger.model_copy(update={"log_path": str(folder)})
    return config.model_copy(update={"runner": config.runner.model_copy(update={"logger": logger})})


def is_finished(config: Config, resumed: Checkpoint, train_rows: int) -> bool:
    """Says so when nothing is left to do after ``resumed``."""
    schedule = resolve_schedule(config, train_rows, Start(step=resumed.step, samples=resumed.samples))
    folder = Path(config.runner.logger.log_path)
    owes = resumed.run_folder == folder.resolve() and owes_evaluation(
        config.runner, folder, resumed.step, schedule.total_steps
    )
    if not schedule.is_finished or owes:
        return False
    say_each(
        [
            f"finished: {resumed.folder} is the end of the run ({resumed.step} steps; runner.max_epochs="
            f"{config.runner.max_epochs}, runner.max_steps={config.runner.max_steps}); nothing was trained. Raise "
            "them to train longer, or leave out runner.resume_dir to start anew"
        ]
    )
    return True


def say_each(lines: Iterable[str]) -> None:
    """Lines for the person who starts the run."""
    with Terminal(0, None) as terminal:
        for line in lines:
            terminal.say(line)
