"""A validated config, run: checks, plan, cluster, runner. What the entry script calls."""

from __future__ import annotations

import os
from pathlib import Path

from rlinf_vlm.cluster.environment import set_ray_environment
from rlinf_vlm.config.schema import Config
from rlinf_vlm.registry import load_dotted
from rlinf_vlm.runners.plan_text import plan_text
from rlinf_vlm.runners.preflight import check_config, local_topology, make_plan, node_groups
from rlinf_vlm.runners.session import Session
from rlinf_vlm.tracking import Terminal
from rlinf_vlm.types import UserError

PROBE_BYTES = 1 << 20
"""What a run folder must at least take: config, plan and the first metrics."""

RUNNERS = {"sft": "rlinf_vlm.runners.sft:run"}


def launch(config: Config) -> None:
    """Runs ``config`` to its end, or prints its plan. Raises UserError for a mistake, before any process starts.

    With RAY_ADDRESS set the machines are known only after joining the cluster, so there the placement is checked then.
    """
    model, train_rows, eval_rows = check_config(config)
    joins = bool(os.environ.get("RAY_ADDRESS")) and not config.runner.dry_run
    plan = None if joins else make_plan(config, local_topology(config), model, train_rows, eval_rows)
    if plan is not None:
        with Terminal(0, None) as terminal:
            terminal.say(plan_text(config, plan))
    if config.runner.dry_run:
        return
    make_run_folder(Path(config.runner.logger.log_path))
    set_ray_environment()
    from rlinf_vlm.cluster.ray_cluster import connect  # Ray is imported only once everything else is in order

    settings = config.cluster
    with connect(
        num_nodes=settings.num_nodes,
        node_wait_timeout_s=settings.node_wait_timeout_s,
        cpu_workers_per_node=settings.cpu_workers_per_node,
        node_groups=node_groups(config),
    ) as cluster:
        plan = make_plan(config, cluster.topology, model, train_rows, eval_rows)
        cluster.reserve(plan.placements, settings.node_wait_timeout_s)
        with Session(config, plan_text(config, plan)) as session:
            load_dotted(RUNNERS[config.runner.task_type])(config, plan, cluster, session)


def make_run_folder(path: Path) -> None:
    """Makes the run folder. Raises UserError when it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(bytes(PROBE_BYTES))
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"runner.logger.log_path={str(path)!r} cannot be written to ({error.strerror}); choose another folder"
        ) from error
