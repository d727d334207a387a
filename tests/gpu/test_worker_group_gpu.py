"""Worker groups on real GPUs: each process sees its own devices only, and colocated groups share one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rlinf_vlm.cluster.placement import parse_component_placement
from rlinf_vlm.cluster.ray_cluster import Cluster, connect
from rlinf_vlm.types import RankContext

pytestmark = pytest.mark.gpu


class Probe:
    """Tells which GPUs it sees and holds memory on one."""

    def __init__(self, context: RankContext) -> None:
        self.context = context
        self.held: Any = None

    def uuids(self) -> list[str]:
        import torch

        return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]

    def hold(self, num_bytes: int) -> float:
        import torch

        self.held = torch.ones(num_bytes, dtype=torch.uint8, device=self.context.device)
        return float(self.held.sum(dtype=torch.float64))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with connect() as cluster:
        yield cluster


def test_each_process_sees_exactly_its_own_gpus(cluster: Cluster) -> None:
    gpus = cluster.topology.accelerators[0]
    assert gpus >= 1, "the gpu tests need a GPU"
    cluster.reserve(parse_component_placement({"actor": "all", "rollout": "all:0"}, cluster.topology))
    singles = cluster.launch("actor", f"{__name__}:Probe").call("uuids")
    (together,) = cluster.launch("rollout", f"{__name__}:Probe").call("uuids")
    assert [len(seen) for seen in singles] == [1] * gpus
    assert len(set(together)) == gpus
    assert [seen[0] for seen in singles] == together


def test_two_colocated_groups_hold_memory_on_one_gpu(cluster: Cluster) -> None:
    cluster.reserve(parse_component_placement({"actor,rollout": 0}, cluster.topology))
    actor = cluster.launch("actor", f"{__name__}:Probe")
    rollout = cluster.launch("rollout", f"{__name__}:Probe")
    assert actor.pids[0] != rollout.pids[0]
    assert actor.call("uuids") == rollout.call("uuids")
    assert actor.call("hold", 2**20) == rollout.call("hold", 2**20) == [float(2**20)]
