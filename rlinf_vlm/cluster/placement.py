"""Which process of which component runs on which node and device, as a pure function of the config and the topology.

Grammar of ``cluster.component_placement``, a map from components to places::

    key      := name ("," name)*              the names share the rule; a name appears once in the map
    value    := ranks | {node_group: label | "l1,l2" | [l1, l2], placement: ranks}
    ranks    := what ``placement_grammar`` reads: "all", "0-3", "0-1:0-3,3-5"

A resource is a GPU of the node group when its nodes have GPUs, else one of ``cpu_workers_per_node`` slots of each node.
Reserved labels: ``cluster`` (all nodes, the default) and ``node`` (a resource is a whole node, a process runs on CPU).
With R resources and P processes in a segment one number divides the other: fewer processes than resources own R / P
resources each, more share a resource P / R at a time. Example: ``0-1:0-3,3-5`` puts processes 0, 1 on resource 0,
2, 3 on resource 1, then 4, 5, 6 on resources 3, 4, 5.

Dataflow: config map + Topology -> ComponentPlacement per name -> GPU shares -> rows of the plan.
Invariants: resource and process ranks ascend over a rule, process ranks are 0..N-1, a process lives on one node.
Every mistake raises UserError that names the key, both values and the remedy.
It starts nothing and asks no machine: what the cluster has is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlinf_vlm.cluster.placement_grammar import KEY, Rule, Segment, parse_rule
from rlinf_vlm.registry import nearest
from rlinf_vlm.types import UserError

CLUSTER_LABEL = "cluster"
NODE_LABEL = "node"
SHARE_UNITS = 10_000
"""Shares are whole multiples of 1 / SHARE_UNITS (the resolution of the scheduler's accounting), rounded down."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What a cluster consists of.

    accelerators: GPUs of each node, in node order; cpu_workers_per_node: process slots of a node that has none;
    node_groups: label -> node ranks. Raises UserError for a reserved label or a node that does not exist.
    """

    accelerators: tuple[int, ...]
    cpu_workers_per_node: int = 1
    node_groups: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.accelerators or self.cpu_workers_per_node < 1:
            raise UserError(
                f"cluster: needs at least 1 node and 1 slot a node, got {len(self.accelerators)} nodes and "
                f"cluster.cpu_workers_per_node={self.cpu_workers_per_node}"
            )
        for label, ranks in self.node_groups.items():
            if label in (CLUSTER_LABEL, NODE_LABEL):
                raise UserError(f"cluster.node_groups: the label {label!r} is reserved; choose another name")
            outside = [rank for rank in ranks if not 0 <= rank < self.num_nodes]
            if outside or not ranks or len(set(ranks)) != len(ranks):
                raise UserError(
                    f"cluster.node_groups.{label}: node ranks {list(ranks)} must be distinct and lie in "
                    f"0-{self.num_nodes - 1} (the cluster has {_count(self.num_nodes, 'node')}; cluster.num_nodes)"
                )

    @property
    def num_nodes(self) -> int:
        return len(self.accelerators)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlacement:
    """One process: ``devices`` are indices on its node, of GPUs or of CPU slots (none for a whole-node process)."""

    rank: int
    node: int
    devices: tuple[int, ...]
    is_gpu: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPlacement:
    """The processes of a component, in rank order."""

    name: str
    processes: tuple[ProcessPlacement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementRow:
    """A line of the plan. ``share`` is the process's part of each of its GPUs; None on CPU."""

    component: str
    rank: int
    node: int
    devices: tuple[int, ...]
    is_gpu: bool
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resource:
    node: int
    device: int | None
    kind: str


def parse_component_placement(spec: Mapping[str, object], topology: Topology) -> tuple[ComponentPlacement, ...]:
    """Resolves ``cluster.component_placement`` against the topology, in the order in which the names are listed.

    Values are strings, ints or ``{node_group, placement}`` maps. Raises UserError.
    """
    placements: dict[str, ComponentPlacement] = {}
    for key, value in spec.items():
        labels, ranks = _read_value(str(key), value)
        resources = _resources(str(key), labels, topology)
        rule = _rule(str(key), ranks, labels, resources)
        processes = _assign(rule, parse_rule(rule), resources)
        for name in (part.strip() for part in str(key).split(",")):
            if not _NAME.fullmatch(name):
                raise UserError(
                    f"{KEY}: {name!r} in the key {str(key)!r} is not a component name, e.g. 'actor,rollout'"
                )
            if name in placements:
                raise UserError(f"{KEY}: {name!r} is placed twice, the second time by {str(key)!r}; keep one of them")
            placements[name] = ComponentPlacement(name=name, processes=processes)
    if not placements:
        raise UserError(f"{KEY} is empty; place at least the actor: {KEY}.actor=all")
    return tuple(placements.values())


def gpu_shares(placements: Sequence[ComponentPlacement]) -> dict[tuple[str, int], tuple[float, ...]]:
    """(component, rank) -> the fraction of each of its GPUs that the process takes; empty for a CPU process.

    k processes on a GPU take 1 / k each, rounded down to 1 / SHARE_UNITS so that together they never pass 1.
    """
    users: dict[tuple[int, int], int] = {}
    for placement in placements:
        for process in placement.processes:
            for device in process.devices if process.is_gpu else ():
                users[process.node, device] = users.get((process.node, device), 0) + 1
    return {
        (placement.name, process.rank): tuple(
            SHARE_UNITS // users[process.node, device] / SHARE_UNITS for device in process.devices if process.is_gpu
        )
        for placement in placements
        for process in placement.processes
    }


def placement_table(placements: Sequence[ComponentPlacement]) -> list[PlacementRow]:
    """One row a process, components in order. A process's share is its smallest over its GPUs."""
    shares = gpu_shares(placements)
    return [
        PlacementRow(
            component=placement.name,
            rank=process.rank,
            node=process.node,
            devices=process.devices,
            is_gpu=process.is_gpu,
            share=min(shares[placement.name, process.rank]) if process.is_gpu else None,
        )
        for placement in placements
        for process in placement.processes
    ]


def threads_by_node(placements: Sequence[ComponentPlacement], cores: Sequence[int]) -> dict[int, int]:
    """node -> CPU threads for each process on it: its cores over the processes that run at once, at least 1.

    Components on the same device take turns, so a device counts as many processes as its busiest component puts there.
    Whole-node processes count only where they are the most. Unknown cores (0) give 0: leave the default.
    """
    counts: dict[int, dict[int, int]] = {}
    on_node: dict[int, int] = {}
    for placement in placements:
        own: dict[tuple[int, int], int] = {}
        whole: dict[int, int] = {}
        for process in placement.processes:
            for device in process.devices[:1]:
                own[process.node, device] = own.get((process.node, device), 0) + 1
            if not process.devices:
                whole[process.node] = whole.get(process.node, 0) + 1
        for (node, device), number in own.items():
            devices = counts.setdefault(node, {})
            devices[device] = max(devices.get(device, 0), number)
        for node, number in whole.items():
            on_node[node] = max(on_node.get(node, 0), number)
    busy = {node: max(sum(counts.get(node, {}).values()), on_node.get(node, 0)) for node in {*counts, *on_node}}
    return {node: max(1, cores[node] // number) if cores[node] else 0 for node, number in busy.items()}


def _read_value(key: str, value: object) -> tuple[list[str], object]:
    """A value in either form -> (node group labels, rule)."""
    if not isinstance(value, Mapping):
        return [CLUSTER_LABEL], value
    unknown = sorted(set(map(str, value)) - {"node_group", "placement"})
    if unknown:
        raise UserError(f"{KEY}.{key}: unknown key {unknown[0]!r} (known: node_group, placement)")
    if "placement" not in value:
        raise UserError(f"{KEY}.{key}: 'placement' is missing, e.g. {{node_group: {CLUSTER_LABEL}, placement: all}}")
    group = value.get("node_group", CLUSTER_LABEL)
    names = group if isinstance(group, Sequence) and not isinstance(group, str) else str(group).split(",")
    labels = [str(name).strip() for name in names]
    return labels, value["placement"]


def _resources(key: str, labels: Sequence[str], topology: Topology) -> tuple[_Resource, ...]:
    """The resources of the node groups, in the order in which the groups are listed."""
    found = tuple(resource for label in labels for resource in _group_resources(key, label, topology))
    if len(set(found)) != len(found):
        raise UserError(f"{KEY}.{key}: the node groups {', '.join(labels)} overlap; list groups that share no node")
    return found


def _rule(key: str, ranks: object, labels: Sequence[str], resources: Sequence[_Resource]) -> Rule:
    """The rule with the words for what it chooses from."""
    num_nodes = len({resource.node for resource in resources})
    nouns = {"gpu": "GPU", "slot": "worker slot", "node": "node"}
    counts = {noun: sum(resource.kind == kind for resource in resources) for kind, noun in nouns.items()}
    owner = "the cluster" if list(labels) == [CLUSTER_LABEL] else f"node_group {','.join(labels)}"
    words = " and ".join(_count(count, noun) for noun, count in counts.items() if count)
    on = "" if counts["node"] else f" on {_count(num_nodes, 'node')}"

    def more(needed: int) -> str:
        if counts["worker slot"]:
            return f"cluster.cpu_workers_per_node={-(-needed // num_nodes)}"
        return "more nodes (cluster.num_nodes, cluster.node_groups)"

    return Rule(key=key, value=ranks, num_resources=len(resources), have=f"{owner} has {words}{on}", more=more)


def _group_resources(key: str, label: str, topology: Topology) -> list[_Resource]:
    if label == NODE_LABEL:
        return [_Resource(node=node, device=None, kind="node") for node in range(topology.num_nodes)]
    known = {CLUSTER_LABEL: tuple(range(topology.num_nodes)), **topology.node_groups}
    if label not in known:
        guess = nearest(label, [*known, NODE_LABEL])
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise UserError(f"{KEY}.{key}: unknown node_group {label!r}{hint} (known: {', '.join([*known, NODE_LABEL])})")
    nodes = known[label]
    counts = [topology.accelerators[node] for node in nodes]
    kind = "gpu" if any(counts) else "slot"
    if not any(counts):
        counts = [topology.cpu_workers_per_node] * len(nodes)
    return [
        _Resource(node=node, device=device, kind=kind)
        for node, count in zip(nodes, counts, strict=True)
        for device in range(count)
    ]


def _assign(rule: Rule, segments: Sequence[Segment], resources: Sequence[_Resource]) -> tuple[ProcessPlacement, ...]:
    """Deals each segment's resources out to its processes."""
    placed: list[ProcessPlacement] = []
    for segment in segments:
        owned = max(1, len(segment.resources) // len(segment.processes))
        sharing = max(1, len(segment.processes) // len(segment.resources))
        for index, rank in enumerate(segment.processes):
            first = segment.resources.start + index // sharing * owned
            mine = resources[first : first + owned]
            if len({(resource.node, resource.kind) for resource in mine}) > 1:
                nodes = ", ".join(str(resource.node) for resource in mine)
                rule.fail(
                    segment.piece,
                    f"process {rank} would own resources {first}-{first + owned - 1}, on nodes {nodes}; a process "
                    f"stays on one node and one kind of resource: ask for more processes",
                )
            devices = tuple(resource.device for resource in mine if resource.device is not None)
            is_gpu = mine[0].kind == "gpu"
            placed.append(ProcessPlacement(rank=rank, node=mine[0].node, devices=devices, is_gpu=is_gpu))
    return tuple(placed)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
