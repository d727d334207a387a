"""The Ray cluster of a run: joined or started, its topology, the GPUs it lends, and the worker groups on them.

Dataflow: ``connect`` -> Cluster (topology) -> placements (``placement``) -> ``reserve`` -> ``launch`` a group by name.
Invariants: nodes are ordered driver's node first, then by address. GPU processes are booked with Ray: one bundle a GPU
in one placement group for all components, so that colocated components share GPUs and two runs never do. A process
sees exactly its own GPUs, and a CPU process none. A device index is an index into the GPUs that Ray lends on that node,
in ascending order of their ids. Whatever a wait waits for, it ends in a bounded time with an error that says why.
Only ``ray_nodes``, this file and ``worker_group`` import ray.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlinf_vlm.cluster.placement import ComponentPlacement, ProcessPlacement, Topology, gpu_shares, threads_by_node
from rlinf_vlm.cluster.ray_nodes import OBJECT_STORE_BYTES, POLL_S, Node, join_or_start, wait_for_nodes
from rlinf_vlm.cluster.worker_group import RankHost, WorkerGroup
from rlinf_vlm.types import RankContext, UserError

_NODE_SHARE = 0.001
"""Pins a bundle to a node: every node offers 1.0 of the resource ``node:<address>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gpu:
    bundle: int
    visible_id: str


def connect(
    *,
    num_nodes: int = 1,
    node_wait_timeout_s: float = 60.0,
    cpu_workers_per_node: int = 1,
    node_groups: Mapping[str, Sequence[int]] | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> Cluster:
    """Joins the cluster at the environment's RAY_ADDRESS, or starts one on this machine.

    Waits up to ``node_wait_timeout_s`` seconds for ``num_nodes`` nodes and uses the first so many. Raises UserError.
    """
    assert not ray.is_initialized(), "this process is in a Ray cluster already; close that one first"
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    if address == "local" and num_nodes > 1:
        raise UserError(
            f"cluster.num_nodes={num_nodes}, but RAY_ADDRESS is not set, which means this 1 machine; start Ray on all "
            f"nodes ('ray start') and set RAY_ADDRESS, or set cluster.num_nodes=1"
        )
    join_or_start(address, object_store_bytes)
    with contextlib.ExitStack() as undo:
        undo.callback(ray.shutdown)
        nodes = wait_for_nodes(address, num_nodes, node_wait_timeout_s)
        topology = Topology(
            accelerators=tuple(node.gpus for node in nodes),
            cpu_workers_per_node=cpu_workers_per_node,
            node_groups=dict(node_groups or {}),
        )
        undo.pop_all()
    return Cluster(nodes, topology)


class Cluster:
    """A joined cluster; a context manager whose end kills the groups and leaves Ray (a started Ray ends with it)."""

    def __init__(self, nodes: Sequence[Node], topology: Topology) -> None:
        self.nodes = tuple(nodes)
        self.topology = topology
        self._placements: dict[str, ComponentPlacement] = {}
        self._shares: dict[tuple[str, int], tuple[float, ...]] = {}
        self._gpus: dict[tuple[int, int], _Gpu] = {}
        self._booking: PlacementGroup | None = None
        self._groups: list[WorkerGroup] = []
        self._open = True

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error a worker may be in the middle of anything; asking it to close would only wait.
        self.close(grace_s=5.0 if kind is None else 0.0)

    def reserve(self, placements: Sequence[ComponentPlacement], timeout_s: float = 120.0) -> None:
        """Books the GPUs of all components of the run. Raises UserError when they are not free within the limit."""
        assert not self._placements, "the placements of a run are reserved once"
        gpus = sorted({(p.node, device) for c in placements for p in c.processes if p.is_gpu for device in p.devices})
        if gpus:
            bundles = [{"GPU": 1.0, f"node:{self.nodes[node].address}": _NODE_SHARE} for node, _ in gpus]
            self._booking = placement_group(bundles)
            _wait_for_booking(self._booking, gpus, self.nodes, timeout_s)
            self._gpus = _order_gpus(gpus, _visible_ids(self._booking, len(gpus), timeout_s))
        self._placements = {placement.name: placement for placement in placements}
        self._shares = gpu_shares(placements)

    def visible_devices(self, process: ProcessPlacement) -> str:
        """The value of CUDA_VISIBLE_DEVICES for a process: its GPUs, or nothing on CPU."""
        devices = process.devices if process.is_gpu else ()
        return ",".join(self._gpus[process.node, device].visible_id for device in devices)

    def launch(
        self,
        component: str,
        worker: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 180.0,
    ) -> WorkerGroup:
        """Starts the component's processes and builds ``worker(context, **kwargs)`` in each.

        worker: "pkg.module:Class"; env: set in the processes before torch is imported. Raises UserError when the
        processes do not start in time or a worker raises it, else WorkerFailure.
        """
        assert component in self._placements, f"{component} is not among the reserved {sorted(self._placements)}"
        processes = self._placements[component].processes
        threads = self._threads()
        actors = [self._actor(component, process, threads[process.node], env or {}) for process in processes]
        group = WorkerGroup(component, actors)
        self._groups.append(group)
        facts = group.meet(start_timeout_s)
        contexts = [
            replace(context, master_addr=facts[0].address, master_port=facts[0].free_port)
            for context in _contexts(processes, threads)
        ]
        group.build(worker, contexts, kwargs or {})
        return group

    def _threads(self) -> dict[int, int]:
        """node -> threads a process; OMP_NUM_THREADS of the driver's environment wins."""
        wanted = os.environ.get("OMP_NUM_THREADS", "")
        computed = threads_by_node(tuple(self._placements.values()), [node.cores for node in self.nodes])
        return {node: int(wanted) if wanted.isdigit() else number for node, number in computed.items()}

    def _actor(self, component: str, process: ProcessPlacement, threads: int, env: Mapping[str, str]) -> Any:
        settings = {"CUDA_VISIBLE_DEVICES": self.visible_devices(process)}
        if threads:
            settings["OMP_NUM_THREADS"] = str(threads)
        if not process.is_gpu:
            # Threads that wait spin by default: with a loading process beside them, or anything else on the machine,
            # a step then takes several times as long.
            settings["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": 0, "max_restarts": 0, "max_task_retries": 0}
        if process.is_gpu:
            assert self._booking is not None, "GPU processes are placed, but no GPU is reserved"
            options["num_gpus"] = self._shares[component, process.rank][0]
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._booking,
                placement_group_bundle_index=self._gpus[process.node, process.devices[0]].bundle,
                placement_group_capture_child_tasks=False,
            )
        else:
            node_id = self.nodes[process.node].node_id
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return ray.remote(RankHost).options(**options).remote(component, process.rank, {**settings, **env})

    def close(self, grace_s: float = 5.0) -> None:
        """Closes the groups, last launched first, and leaves Ray. Can be repeated."""
        if not self._open:
            return
        self._open = False
        try:
            for group in reversed(self._groups):
                group.close(grace_s)
            if self._booking is not None:
                remove_placement_group(self._booking)
        finally:
            ray.shutdown()


def _contexts(processes: Sequence[ProcessPlacement], threads: Mapping[int, int]) -> list[RankContext]:
    """One context a process, without the address of the rendezvous."""
    nodes = [process.node for process in processes]
    return [
        RankContext(
            rank=process.rank,
            world_size=len(processes),
            local_rank=nodes[: process.rank].count(process.node),
            local_world_size=nodes.count(process.node),
            master_addr="",
            master_port=0,
            device="cuda:0" if process.is_gpu else "cpu",
            num_threads=threads[process.node],
        )
        for process in processes
    ]


def _wait_for_booking(
    booking: PlacementGroup, gpus: Sequence[tuple[int, int]], nodes: Sequence[Node], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while not booking.wait(timeout_seconds=POLL_S):
        if time.monotonic() >= deadline:
            counts = [sum(node == index for node, _ in gpus) for index in range(len(nodes))]
            asked = ", ".join(f"{count} on {nodes[index].address}" for index, count in enumerate(counts) if count)
            free = ray.available_resources().get("GPU", 0)
            total = ray.cluster_resources().get("GPU", 0)
            raise UserError(
                f"cluster.component_placement needs {len(gpus)} whole GPUs ({asked}), but after {timeout_s:g} s Ray "
                f"has {free:g} of {total:g} free; wait for the run that holds them ('ray status'), or ask for fewer"
            )


def _visible_ids(booking: PlacementGroup, num_bundles: int, timeout_s: float) -> list[str]:
    """The id of the GPU behind each bundle, as CUDA_VISIBLE_DEVICES takes it."""
    probes = [
        ray.remote(_my_gpu)
        .options(
            num_cpus=0,
            num_gpus=1,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(booking, placement_group_bundle_index=bundle),
        )
        .remote()
        for bundle in range(num_bundles)
    ]
    _, missing = ray.wait(probes, num_returns=num_bundles, timeout=timeout_s)
    if missing:
        raise UserError(
            f"{len(missing)} of {num_bundles} GPU processes did not start within {timeout_s:g} s; see the newest "
            f"session under /tmp/ray for the logs of Ray"
        )
    return ray.get(probes)


def _my_gpu() -> str:
    (gpu,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return str(gpu)


def _order_gpus(gpus: Sequence[tuple[int, int]], visible_ids: Sequence[str]) -> dict[tuple[int, int], _Gpu]:
    """(node, device) -> GPU: a node's device indices ascend with the ids that Ray lent there."""
    ordered: dict[tuple[int, int], _Gpu] = {}
    for node in sorted({node for node, _ in gpus}):
        devices = [device for owner, device in gpus if owner == node]
        lent = [
            _Gpu(bundle=bundle, visible_id=visible_id)
            for bundle, ((owner, _), visible_id) in enumerate(zip(gpus, visible_ids, strict=True))
            if owner == node
        ]
        lent.sort(key=lambda gpu: (len(gpu.visible_id), gpu.visible_id))
        ordered |= {(node, device): gpu for device, gpu in zip(devices, lent, strict=True)}
    return ordered
