"""A driver that waits for workers for ever: what Ctrl-C has to end. Writes its workers' pids to the file argv[1]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlinf_vlm.cluster.placement import parse_component_placement
from rlinf_vlm.cluster.ray_cluster import connect


def main() -> None:
    with connect(cpu_workers_per_node=2) as cluster:
        cluster.reserve(parse_component_placement({"actor": "0-1"}, cluster.topology))
        group = cluster.launch("actor", "worker_group_workers:Faulty")
        children = group.call("child_pid")
        pids = Path(sys.argv[1])
        pids.with_suffix(".new").write_text(json.dumps([*group.pids.values(), *children]))
        pids.with_suffix(".new").rename(pids)
        group.call("sleep_unless", -1, "")


if __name__ == "__main__":
    main()
