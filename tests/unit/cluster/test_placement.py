"""Placement rules against hand-worked tables, and every mistake against the words of its message."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from rlinf_vlm.cluster.placement import (
    ComponentPlacement,
    Topology,
    gpu_shares,
    parse_component_placement,
    placement_table,
    threads_by_node,
)
from rlinf_vlm.types import UserError

ONE_CPU = Topology(accelerators=(0,))
EIGHT = Topology(accelerators=(8,))
SIXTEEN = Topology(accelerators=(8, 8))
MIXED = Topology(accelerators=(2, 4, 0), node_groups={"a": (0,), "b": (1,), "c": (2,)})


def places(placement: ComponentPlacement) -> list[tuple[int, int, tuple[int, ...]]]:
    assert [process.rank for process in placement.processes] == list(range(len(placement.processes)))
    return [(process.rank, process.node, process.devices) for process in placement.processes]


def place(value: object, topology: Topology) -> list[tuple[int, int, tuple[int, ...]]]:
    (placement,) = parse_component_placement({"actor": value}, topology)
    assert placement.name == "actor"
    return places(placement)


def error(spec: Mapping[str, object], topology: Topology) -> str:
    with pytest.raises(UserError) as caught:
        parse_component_placement(spec, topology)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_all_takes_every_gpu_in_node_order() -> None:
    assert place("all", Topology(accelerators=(2, 1))) == [(0, 0, (0,)), (1, 0, (1,)), (2, 1, (0,))]


def test_without_gpus_all_takes_the_worker_slots() -> None:
    topology = Topology(accelerators=(0, 0), cpu_workers_per_node=2)
    assert place("all", topology) == [(0, 0, (0,)), (1, 0, (1,)), (2, 1, (0,)), (3, 1, (1,))]
    (placement,) = parse_component_placement({"actor": "all"}, topology)
    assert not any(process.is_gpu for process in placement.processes)


def test_example_of_three_segments() -> None:
    (placement,) = parse_component_placement({"actor": "0-1:0-3,3-5,7-10:7-14"}, SIXTEEN)
    assert places(placement) == [
        *[(0, 0, (0,)), (1, 0, (0,)), (2, 0, (1,)), (3, 0, (1,))],
        *[(4, 0, (3,)), (5, 0, (4,)), (6, 0, (5,))],
        *[(7, 0, (7,)), (8, 0, (7,)), (9, 1, (0,)), (10, 1, (0,))],
        *[(11, 1, (1,)), (12, 1, (1,)), (13, 1, (2,)), (14, 1, (2,))],
    ]
    assert all(process.is_gpu for process in placement.processes)


def test_fewer_processes_than_resources_own_several() -> None:
    assert place("0-7:0-1", EIGHT) == [(0, 0, (0, 1, 2, 3)), (1, 0, (4, 5, 6, 7))]
    assert place("all:0-3", SIXTEEN)[2] == (2, 1, (0, 1, 2, 3))


def test_more_processes_than_resources_share() -> None:
    assert place("all:0-2", ONE_CPU) == [(0, 0, (0,)), (1, 0, (0,)), (2, 0, (0,))]


def test_an_int_and_spaces_are_read() -> None:
    assert place(3, EIGHT) == [(0, 0, (3,))]
    assert place(0, ONE_CPU) == [(0, 0, (0,))]
    assert place(" 0 - 1 : 0 , 3 ", EIGHT) == [(0, 0, (0, 1)), (1, 0, (3,))]


def test_a_comma_key_places_each_name_alike_in_order() -> None:
    placements = parse_component_placement({"rollout, actor": "0-1", "reward": 2}, EIGHT)
    assert [placement.name for placement in placements] == ["rollout", "actor", "reward"]
    assert places(placements[0]) == places(placements[1]) == [(0, 0, (0,)), (1, 0, (1,))]


@pytest.mark.parametrize("group", ["b,a", ["b", "a"], ("b", "a")])
def test_node_groups_are_concatenated_in_listed_order(group: object) -> None:
    assert place({"node_group": group, "placement": "3-4"}, MIXED) == [(0, 1, (3,)), (1, 0, (0,))]


def test_reserved_label_node_and_a_group_without_gpus_run_on_cpu() -> None:
    spec = {
        "agent": {"node_group": "node", "placement": "0-1:0-3"},
        "reward": {"node_group": "c", "placement": "all"},
        "actor": {"placement": "0-5"},
    }
    agent, reward, actor = parse_component_placement(spec, MIXED)
    assert places(agent) == [(0, 0, ()), (1, 0, ()), (2, 1, ()), (3, 1, ())]
    assert places(reward) == [(0, 2, (0,))]
    assert not agent.processes[0].is_gpu and not reward.processes[0].is_gpu and actor.processes[0].is_gpu
    assert [process.node for process in actor.processes] == [0, 0, 1, 1, 1, 1]


def test_out_of_range_gives_both_numbers_and_the_remedy() -> None:
    message = error({"actor": "0-7"}, ONE_CPU)
    assert message == (
        "cluster.component_placement.actor: asks for resources 0-7 but the cluster has 1 worker slot on 1 node, "
        "numbered from 0; set cluster.component_placement.actor=all or cluster.cpu_workers_per_node=8 "
        "(at column 1, '0-7', of '0-7')"
    )
    message = error({"actor": "0-3,8"}, EIGHT)
    assert "asks for resource 8 but the cluster has 8 GPUs on 1 node" in message
    assert "cluster.num_nodes" in message and "column 5" in message
    assert "cluster.cpu_workers_per_node=3" in error({"actor": "0-5"}, Topology(accelerators=(0, 0)))
    assert "'actor,rollout: all' in cluster.component_placement" in error({"actor,rollout": "0-1"}, ONE_CPU)
    spec = {"agent": {"node_group": "node", "placement": 3}}
    assert "but node_group node has 3 nodes, numbered" in error(spec, MIXED)


@pytest.mark.parametrize(("number", "meant"), [(63, "1:3"), (120, "2:0"), (60, "1:0")])
def test_base_60_numbers_are_recognised(number: int, meant: str) -> None:
    message = error({"actor": number}, EIGHT)
    assert f'quote it, "{meant}"' in message and "cluster.component_placement.actor" in message
    nested = error({"actor": {"node_group": "a", "placement": number}}, MIXED)
    assert f'"{meant}"' in nested and "node_group a has 2 GPUs" in nested


def test_an_int_that_is_a_resource_is_never_called_base_60() -> None:
    assert place(63, Topology(accelerators=(8,) * 8)) == [(0, 7, (7,))]
    assert "base-60" not in error({"actor": 59}, EIGHT)


@pytest.mark.parametrize(
    ("rule", "column", "piece", "words"),
    [
        ("0-1,", 5, "", "extra comma"),
        ("0-1,1", 5, "1", "ascend without repeats; after the segments before, 2"),
        ("3,0-1", 3, "0-1", "ascend"),
        ("all,0", 5, "0", "ascend"),
        ("3-1", 1, "3-1", "3 comes before 1"),
        ("0:1-0", 3, "1-0", "1 comes before 0"),
        ("0-1:1-2", 5, "1-2", "go on from 0"),
        ("0-1:0-1, 2-3:3-4", 14, "3-4", "go on from 2"),
        ("0-2:0-1", 1, "0-2:0-1", "processes: 2, resources: 3"),
        ("0-1:all", 5, "all", "processes must be"),
        ("0:0:0", 5, "0", "one colon"),
        ("0-x", 1, "0-x", "resources must be"),
        ("-1", 1, "-1", "resources must be"),
    ],
)
def test_errors_point_at_the_piece(rule: str, column: int, piece: str, words: str) -> None:
    message = error({"actor": rule}, EIGHT)
    assert message.startswith("cluster.component_placement.actor: ")
    assert f"(at column {column}, {piece!r}, of {rule!r})" in message
    assert words in message


def test_a_process_stays_on_one_node() -> None:
    message = error({"actor": "0-5:0-2"}, Topology(accelerators=(3, 3)))
    assert "process 1 would own resources 2-3, on nodes 0, 1" in message
    spec = {"actor": {"node_group": "a,c", "placement": "1-2:0"}}
    assert "one kind of resource" in error(spec, MIXED)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"actor": "0", "actor,rollout": "1"}, "'actor' is placed twice"),
        ({"actor,actor": "0"}, "'actor' is placed twice"),
        ({"actor,": "0"}, "'' in the key 'actor,'"),
        ({}, "is empty"),
        ({"actor": None}, "None is no placement"),
        ({"actor": True}, "True is no placement"),
        ({"actor": [0, 1]}, "[0, 1] is no placement"),
        ({"actor": ""}, "'' is no placement"),
        ({"actor": {"node_group": "cluster"}}, "'placement' is missing"),
        ({"actor": {"placment": "all", "placement": "all"}}, "unknown key 'placment'"),
        ({"actor": {"node_group": "clutser", "placement": "all"}}, "did you mean 'cluster'"),
        ({"actor": {"node_group": "a,cluster", "placement": "all"}}, "overlap"),
    ],
)
def test_mistakes_in_the_map(spec: dict[str, object], words: str) -> None:
    message = error(spec, MIXED)
    assert words in message and message.startswith("cluster.component_placement")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"node": (0,)}, "reserved"),
        ({"cluster": (0,)}, "reserved"),
        ({"a": (0, 2)}, "0-1"),
        ({"a": ()}, "distinct"),
        ({"a": (1, 1)}, "distinct"),
    ],
)
def test_topology_checks_its_node_groups(groups: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Topology(accelerators=(1, 1), node_groups=groups)
    with pytest.raises(UserError, match="cpu_workers_per_node=0"):
        Topology(accelerators=(0,), cpu_workers_per_node=0)


def test_shares_are_equal_and_never_pass_one() -> None:
    placements = parse_component_placement({"actor,rollout": "0-1", "reward": "0", "critic": "1:0-4"}, EIGHT)
    shares = gpu_shares(placements)
    assert shares["actor", 0] == shares["rollout", 0] == shares["reward", 0] == (0.3333,)
    assert shares["actor", 1] == shares["critic", 4] == (0.1428,)
    assert 3 * 0.3333 <= 1 and 7 * 0.1428 <= 1
    alone = parse_component_placement({"actor": "0-1:0", "rollout": "1"}, EIGHT)
    assert gpu_shares(alone) == {("actor", 0): (1.0, 0.5), ("rollout", 0): (0.5,)}


def test_table_has_a_row_for_each_process() -> None:
    placements = parse_component_placement({"actor": "0-1:0", "rollout": "1"}, EIGHT)
    rows = [(row.component, row.rank, row.node, row.devices, row.share) for row in placement_table(placements)]
    assert rows == [("actor", 0, 0, (0, 1), 0.5), ("rollout", 0, 0, (1,), 0.5)]
    (row,) = placement_table(parse_component_placement({"actor": "all"}, ONE_CPU))
    assert (row.devices, row.is_gpu, row.share) == ((0,), False, None)


def test_threads_are_divided_among_processes_that_run_at_once() -> None:
    two = Topology(accelerators=(0, 0), cpu_workers_per_node=2)
    apart = parse_component_placement({"actor": "0,2-3", "rollout": "1"}, two)
    assert threads_by_node(apart, cores=(8, 5)) == {0: 4, 1: 2}
    in_turn = parse_component_placement({"actor,rollout": "0-1:0-3"}, two)
    assert threads_by_node(in_turn, cores=(8, 8)) == {0: 2}
    helper = {"actor": "0", "reward": {"node_group": "node", "placement": "0:0-2"}}
    assert threads_by_node(parse_component_placement(helper, two), cores=(8, 8)) == {0: 2}
    assert threads_by_node(apart, cores=(1, 0)) == {0: 1, 1: 0}
