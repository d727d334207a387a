"""Groups of worker processes: start them, call all ranks, end at the first failure, leave nothing behind.

A worker is any plain class, named ``pkg.module:Class``; each rank's process builds one as ``Class(context, **kwargs)``
and runs the methods that the driver calls on its main thread, one at a time, in the order of the calls.

Dataflow: driver ``group.call("train", batch)`` -> one task a rank -> results by rank, or the first failure.
Invariants: after a failure every process of the groups that were waited for is dead, with its children; a wait ends
within about a second of the first failure; UserError crosses the border as itself, anything else as WorkerFailure.
Ctrl-C does not reach the workers (each leads its own process group); the driver ends them.
It decides nothing about where processes run (``ray_cluster`` does) and moves no tensors beyond arguments and results.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlinf_vlm.cluster.ray_nodes import POLL_S
from rlinf_vlm.registry import load_dotted
from rlinf_vlm.types import RankContext, UserError, WorkerFailure

LOG = logging.getLogger(__name__)
SETTLE_S = 1.0
"""After a failure, how long to look for the cause of it in another rank (a peer's death breaks a collective)."""
KILL_WAIT_S = 3.0
_CLUTTER = re.compile(r"\x1b\[[0-9;]*m|^ *\^+ *\n", re.MULTILINE)
"""Colours, and the underlines of source lines that a remote traceback has lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Where a rank's process runs; ``free_port`` was free on its node a moment ago."""

    pid: int
    node_id: str
    address: str
    free_port: int


class RankHost:
    """The process of one rank: it holds the worker object. Runs remotely; knows no torch."""

    def __init__(self, component: str, rank: int, env: Mapping[str, str]) -> None:
        self._name = f"{component}[{rank}]"
        self._worker: Any = None
        # Before anything is unpickled that could import torch, which reads the thread count when it loads.
        os.environ.update(env)
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)

    def __repr__(self) -> str:
        return self._name

    def facts(self) -> HostFacts:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        node_id = ray.get_runtime_context().get_node_id()
        return HostFacts(pid=os.getpid(), node_id=node_id, address=ray.util.get_node_ip_address(), free_port=port)

    def build(self, worker: str, context: RankContext, kwargs: Mapping[str, Any]) -> None:
        self._worker = load_dotted(worker)(context, **kwargs)

    def run(self, method: str, payload: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Any:
        args, kwargs = payload
        return getattr(self._worker, method)(*args, **kwargs)

    def close(self) -> None:
        if hasattr(self._worker, "close"):
            self._worker.close()


class PendingCall:
    """A method that runs on the ranks of a group; ``wait`` for its results."""

    def __init__(self, group: WorkerGroup, method: str, refs: Mapping[int, Any]) -> None:
        self.group = group
        self.method = method
        self.refs = dict(refs)

    def done(self) -> bool:
        """True when every rank has returned or failed."""
        refs = list(self.refs.values())
        return len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)

    def wait(self, timeout_s: float | None = None) -> list[Any]:
        """The results in rank order. Errors are those of ``wait_all``."""
        return wait_all([self], timeout_s)[0]


def wait_all(calls: Sequence[PendingCall], timeout_s: float | None = None) -> list[list[Any]]:
    """The results of several calls, each in rank order.

    The first rank that fails ends all of them and kills their groups: raises the UserError that it raised, else
    WorkerFailure. Raises TimeoutError, and leaves the groups running, when ``timeout_s`` seconds have passed.
    """
    owners = {ref: (call, rank) for call in calls for rank, ref in call.refs.items()}
    waiting, values = list(owners), {}
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while waiting:
        remaining = POLL_S if deadline is None else deadline - time.monotonic()
        if remaining <= 0:
            late = [f"{owners[ref][0].group.name} rank {owners[ref][1]} {owners[ref][0].method!r}" for ref in waiting]
            raise TimeoutError(f"not finished after {timeout_s:g} s: {', '.join(late)}")
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(POLL_S, remaining))
        for ref in ready:
            outcome = _fetch(ref, *owners[ref])
            if isinstance(outcome, _Failed):
                failure = _root_cause(outcome, waiting, owners)
                for group in {call.group for call in calls}:
                    group.kill()
                raise failure.error
            values[ref] = outcome
    return [[values[ref] for ref in call.refs.values()] for call in calls]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    error: Exception
    urgency: int
    """The highest is reported: a user's mistake, then a dead process, then an exception."""


def _fetch(ref: Any, call: PendingCall, rank: int) -> Any:
    """A finished task's result, or _Failed."""
    group = call.group
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            return _Failed(error=error.cause, urgency=2)
        what, details, urgency = "raised", _CLUTTER.sub("", str(error)), 0
    except ray.exceptions.RayActorError as error:
        pid = f" (pid {group.pids[rank]})" if rank in group.pids else ""
        what, details, urgency = f"lost its process{pid}: it died", _CLUTTER.sub("", str(error)), 1
    except ray.exceptions.RayError as error:
        what, details, urgency = "did not deliver its result", _CLUTTER.sub("", str(error)), 0
    failure = WorkerFailure(component=group.name, rank=rank, method=call.method, what=what, details=details)
    return _Failed(error=failure, urgency=urgency)


def _root_cause(first: _Failed, waiting: Sequence[Any], owners: Mapping[Any, tuple[PendingCall, int]]) -> _Failed:
    """The failure to report: peers of a dead process fail too, sometimes before its death is known."""
    if first.urgency == 2 or not waiting:
        return first
    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=SETTLE_S)
    failures = [outcome for ref in ready if isinstance(outcome := _fetch(ref, *owners[ref]), _Failed)]
    return max([first, *failures], key=lambda failure: failure.urgency)


class WorkerGroup:
    """The processes of one component, by rank. Made by ``Cluster.launch``."""

    def __init__(self, name: str, actors: Sequence[Any]) -> None:
        self.name = name
        self._actors = list(actors)
        self._facts: list[HostFacts] = []
        self._alive = True

    @property
    def world_size(self) -> int:
        return len(self._actors)

    @property
    def pids(self) -> dict[int, int]:
        """rank -> process id on its node."""
        return {rank: facts.pid for rank, facts in enumerate(self._facts)}

    def meet(self, timeout_s: float) -> list[HostFacts]:
        """Waits until every process runs; raises UserError after ``timeout_s`` seconds."""
        pending = PendingCall(self, "start", {rank: actor.facts.remote() for rank, actor in enumerate(self._actors)})
        try:
            self._facts = pending.wait(timeout_s)
        except TimeoutError as error:
            raise UserError(
                f"{self.name}: its {self.world_size} processes did not start within {timeout_s:g} s ({error}); "
                f"see the newest session under /tmp/ray for the logs of Ray"
            ) from error
        return self._facts

    def build(self, worker: str, contexts: Sequence[RankContext], kwargs: Mapping[str, Any]) -> None:
        """Builds ``worker(context, **kwargs)`` in every process and waits for it."""
        pairs = enumerate(zip(self._actors, contexts, strict=True))
        refs = {rank: actor.build.remote(worker, context, dict(kwargs)) for rank, (actor, context) in pairs}
        PendingCall(self, worker, refs).wait()

    def start(self, method: str, *args: Any, ranks: Sequence[int] | None = None, **kwargs: Any) -> PendingCall:
        """Starts ``method`` with the same arguments on ``ranks`` (None: all); results come in their order."""
        chosen = range(self.world_size) if ranks is None else ranks
        # Stored once: an argument handed to each rank by itself would be pickled and stored once a rank.
        payload = ray.put((args, kwargs)) if len(chosen) > 1 and (args or kwargs) else (args, kwargs)
        return self._start(method, {rank: payload for rank in chosen})

    def start_each(self, method: str, args_by_rank: Sequence[tuple[Any, ...]]) -> PendingCall:
        """Starts ``method`` on every rank with that rank's own arguments."""
        assert len(args_by_rank) == self.world_size, f"{len(args_by_rank)} argument tuples for {self.world_size} ranks"
        return self._start(method, {rank: (tuple(args), {}) for rank, args in enumerate(args_by_rank)})

    def call(self, method: str, *args: Any, ranks: Sequence[int] | None = None, **kwargs: Any) -> list[Any]:
        """``start`` and ``wait``."""
        return self.start(method, *args, ranks=ranks, **kwargs).wait()

    def call_each(self, method: str, args_by_rank: Sequence[tuple[Any, ...]]) -> list[Any]:
        """``start_each`` and ``wait``."""
        return self.start_each(method, args_by_rank).wait()

    def _start(self, method: str, payloads: Mapping[int, Any]) -> PendingCall:
        assert self._alive, f"{self.name} was closed or has failed; {method!r} cannot run"
        assert payloads, f"{self.name}: {method!r} was called on no rank"
        refs = {rank: self._actors[rank].run.remote(method, payload) for rank, payload in payloads.items()}
        return PendingCall(self, method, refs)

    def close(self, grace_s: float = 5.0) -> None:
        """Asks each worker to ``close()``, waits up to ``grace_s`` seconds, then kills. Can be repeated."""
        if self._alive and grace_s > 0:
            refs = {actor.close.remote(): rank for rank, actor in enumerate(self._actors)}
            call = PendingCall(self, "close", {rank: ref for ref, rank in refs.items()})
            for ref in ray.wait(list(refs), num_returns=len(refs), timeout=grace_s)[0]:
                outcome = _fetch(ref, call, refs[ref])
                if isinstance(outcome, _Failed):
                    LOG.warning("%s", outcome.error)
        self.kill()

    def kill(self) -> None:
        """Ends every process of the group and the processes that they started. Can be repeated."""
        if not self._alive:
            return
        self._alive = False
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        here = ray.get_runtime_context().get_node_id()
        by_node: dict[str, list[int]] = {}
        for facts in self._facts:
            by_node.setdefault(facts.node_id, []).append(facts.pid)
        elsewhere = [
            ray.remote(_end_process_groups)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
            .remote(pids)
            for node_id, pids in by_node.items()
            if node_id != here
        ]
        _end_process_groups(by_node.get(here, []))
        if elsewhere:
            ray.wait(elsewhere, num_returns=len(elsewhere), timeout=2 * KILL_WAIT_S)


def _end_process_groups(leaders: Sequence[int]) -> None:
    """Kills what is left of the process groups that these processes lead, once the leaders had time to end."""
    deadline = time.monotonic() + KILL_WAIT_S
    while any(_exists(pid) for pid in leaders) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
