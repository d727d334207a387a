"""What a config of reinforcement learning comes to: its plan, before any process starts.

    Config + placements -> the engines' and the reward's processes, how weights are pushed, sizes -> RlPlan

Pure but for a look at which steps are on record. No torch, no Ray, no vLLM is loaded. Not here: what is wrong with a
config wherever it runs (``rl_checks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlinf_vlm.cluster.placement import ComponentPlacement, ProcessPlacement
from rlinf_vlm.config.resolve import Schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.rollout.files import recorded_steps
from rlinf_vlm.rollout.records import Sampling
from rlinf_vlm.types import UserError

ACTOR, ROLLOUT, REWARD = "actor", "rollout", "reward"
TASK = "reasoning"
"""The runner.task_type of reinforcement learning."""

Transport = Literal["shm", "ipc", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RlPlan:
    """How a run of reinforcement learning is laid out.

    transport: how weights get to the engines; None without engines (recorded answers are trained on);
    sleeps: whether an engine gives its memory back while the actor trains; engines: how many there are;
    prompts: of a step; answers: of a step; reasons: key -> why.
    """

    transport: Transport | None
    sleeps: bool
    engines: int
    prompts: int
    answers: int
    reasons: dict[str, str]


def _check_recorded(replay: str, schedule: Schedule) -> None:
    """Every step that is left is on record."""
    recorded = recorded_steps(Path(replay))
    missing = next((s for s in range(schedule.start.step + 1, schedule.total_steps + 1) if s not in recorded), None)
    if missing is not None:
        raise UserError(
            f"runner.replay_rollouts={replay!r} has no step_{missing}.jsonl (recorded: {len(recorded)} steps, the last "
            f"{recorded[-1]}), but the run has {schedule.total_steps} steps; lower runner.max_steps"
        )


def train_sampling(config: Config) -> Sampling:
    """How the answers that are trained on are sampled."""
    params = config.algorithm.sampling_params
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        max_new_tokens=params.max_new_tokens,
        n=config.algorithm.group_size,
    )


def eval_samplings(config: Config) -> tuple[Sampling, Sampling | None]:
    """(greedy, sampled or None): the answers that an evaluation takes."""
    params = config.algorithm.eval_sampling_params
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=-1, max_new_tokens=params.max_new_tokens, n=1)
    if not params.n:
        return greedy, None
    return greedy, replace(greedy, temperature=params.temperature, top_p=params.top_p, top_k=params.top_k, n=params.n)


def place_components(config: Config, placements: Sequence[ComponentPlacement]) -> tuple[ComponentPlacement, ...]:
    """The run's components in the order actor, rollout, reward: engines of tensor_parallel_size GPUs, the reward on
    CPUs (on the first node where it is not placed). Raises UserError."""
    found = {placement.name: placement for placement in placements}
    wanted = (ACTOR,) if config.runner.replay_rollouts is not None else (ACTOR, ROLLOUT)
    unknown = sorted(found.keys() - {ACTOR, ROLLOUT, REWARD})
    if unknown or any(name not in found for name in wanted):
        raise UserError(
            f"cluster.component_placement places {list(found)}, but runner.task_type='reasoning' runs {list(wanted)} "
            f"(and reward, on CPUs); place these, for example {{'{','.join(wanted)}': all}}"
        )
    if wanted == (ACTOR,):
        return (found[ACTOR],)
    engines = _engines(found[ROLLOUT], config.rollout.tensor_parallel_size)
    return found[ACTOR], engines, _on_cpus(found.get(REWARD), found[ACTOR])


def _engines(placement: ComponentPlacement, size: int) -> ComponentPlacement:
    """Processes of ``size`` GPUs, or worker slots, each."""
    on_gpu = placement.processes[0].is_gpu
    if not on_gpu and size == 1:
        return placement
    noun = "GPUs" if on_gpu else "worker slots"
    widths = {len(process.devices) for process in placement.processes}
    if widths == {size}:
        return placement
    places = [(process.node, device) for process in placement.processes for device in process.devices]
    chunks = [places[start : start + size] for start in range(0, len(places), size)]
    if widths != {1} or len(set(places)) != len(places) or any(len({n for n, _ in c}) > 1 for c in chunks):
        raise UserError(
            f"rollout.tensor_parallel_size={size}, but cluster.component_placement gives the rollout's processes "
            f"{sorted(widths)} {noun} each; give each process one, or {size}"
        )
    if len(places) % size:
        raise UserError(
            f"rollout.tensor_parallel_size={size} does not divide the rollout's {len(places)} {noun}; change one of "
            "the two"
        )
    return replace(
        placement,
        processes=tuple(
            ProcessPlacement(rank=rank, node=chunk[0][0], devices=tuple(device for _, device in chunk), is_gpu=on_gpu)
            for rank, chunk in enumerate(chunks)
        ),
    )


def _on_cpus(placement: ComponentPlacement | None, actor: ComponentPlacement) -> ComponentPlacement:
    if placement is None:
        first = ProcessPlacement(rank=0, node=actor.processes[0].node, devices=(), is_gpu=False)
        return ComponentPlacement(name=REWARD, processes=(first,))
    return replace(
        placement,
        processes=tuple(replace(process, devices=(), is_gpu=False) for process in placement.processes),
    )


def plan_rl(config: Config, placements: Sequence[ComponentPlacement], schedule: Schedule | None = None) -> RlPlan:
    """The plan for ``placements``, those of ``place_components``. Raises UserError, also where recorded answers are to
    be trained on and a step of ``schedule`` (None: not known) is not among them."""
    if schedule is not None and config.runner.replay_rollouts is not None:
        _check_recorded(config.runner.replay_rollouts, schedule)
    prompts, group = config.data.rollout_batch_size, config.algorithm.group_size
    reasons: dict[str, str] = {}
    transport: Transport | None = None
    sleeps, engines = False, 0
    if len(placements) > 1:
        transport, reasons["transport"] = _transport(placements[0], placements[1])
        engines = len(placements[1].processes)
        shares_gpu = transport == "ipc"
        asked = config.rollout.sleep
        if asked is True and not shares_gpu:
            raise UserError(
                "rollout.sleep=true, but the engines share no GPU with the actor, so that nothing is gained; set it to "
                "auto or false"
            )
        sleeps = shares_gpu if asked == "auto" else asked
        reasons["sleep"] = "requested"
        if asked == "auto":
            reasons["sleep"] = "actor and engine share GPUs" if shares_gpu else "no GPU is shared"
    return RlPlan(
        transport=transport,
        sleeps=sleeps,
        engines=engines,
        prompts=prompts,
        answers=prompts * group,
        reasons=reasons,
    )


def _transport(actor: ComponentPlacement, rollout: ComponentPlacement) -> tuple[Transport, str]:
    """How weights get from one to the other, and why."""
    senders = {(process.node, device) for process in actor.processes for device in process.devices}
    receivers = {(process.node, device) for process in rollout.processes for device in process.devices}
    on_gpu = (actor.processes[0].is_gpu, rollout.processes[0].is_gpu)
    if on_gpu == (False, False):
        if len({process.node for process in (*actor.processes, *rollout.processes)}) > 1:
            raise UserError(
                "cluster.component_placement: on CPUs weights go through shared memory, so actor and rollout must be "
                "on one node"
            )
        return "shm", "actor and rollout run on CPUs of one machine"
    if on_gpu != (True, True):
        raise UserError(
            "cluster.component_placement puts one of actor and rollout on GPUs and the other on CPUs; place both alike"
        )
    if receivers <= senders:
        return "ipc", "every engine is on GPUs of the actor"
    if not receivers & senders:
        return "nccl", "actor and rollout have GPUs of their own"
    raise UserError(
        f"cluster.component_placement: the rollout shares {len(receivers & senders)} of its {len(receivers)} GPUs with "
        "the actor; let it share all of them or none"
    )
