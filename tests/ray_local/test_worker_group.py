"""Worker groups on a local Ray: results, rendezvous, each way to fail, and that no process outlives its group."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from rlinf_vlm.cluster import ray_nodes
from rlinf_vlm.cluster.placement import parse_component_placement
from rlinf_vlm.cluster.ray_cluster import Cluster, connect
from rlinf_vlm.cluster.worker_group import WorkerFailure, WorkerGroup, wait_all
from rlinf_vlm.types import UserError

HERE = Path(__file__).parent
PLACEMENT = {"actor": "0-1", "rollout": "0-1", "reward": {"node_group": "node", "placement": 0}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(HERE))
        with connect(cpu_workers_per_node=2) as cluster:
            cluster.reserve(parse_component_placement(PLACEMENT, cluster.topology))
            yield cluster


def exists(pid: int) -> bool:
    """True for a process that runs; one that has ended and waits to be collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: Sequence[int], within_s: float = 5.0) -> bool:
    assert pids and all(pid > 1 for pid in pids)
    deadline = time.monotonic() + within_s
    while any(map(exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(exists, pids))


def faulty(cluster: Cluster) -> tuple[WorkerGroup, list[int]]:
    """Two ranks, and the pids of them and of a child process of each."""
    group = cluster.launch("actor", "worker_group_workers:Faulty")
    pids = [*group.pids.values(), *group.call("child_pid")]
    assert len(set(pids)) == 4 and all(map(exists, pids))
    return group, pids


def test_results_come_by_rank_and_processes_know_their_place(cluster: Cluster) -> None:
    group = cluster.launch("actor", "worker_group_workers:Echo", {"offset": 100}, env={"ECHO_EXTRA": "yes"})
    assert group.world_size == 2
    assert group.call("add", 1, extra=2) == [103, 113]
    assert group.call("add", 1, ranks=[1]) == [111]
    assert group.call("add", 1, ranks=[1, 0]) == [111, 101]
    assert group.call_each("add", [(1,), (2,)]) == [101, 112]
    first, second = group.call("where")
    assert (first["pid"], second["pid"]) == (group.pids[0], group.pids[1]) and first["pid"] != second["pid"]
    assert (first["threads"], first["torch"], first["visible"], first["extra"]) == ("1", False, "", "yes")
    assert [w["context"].rank for w in (first, second)] == [w["context"].local_rank for w in (first, second)] == [0, 1]
    context = second["context"]
    assert (context.world_size, context.local_world_size, context.device, context.num_threads) == (2, 2, "cpu", 1)
    assert context.master_addr == cluster.nodes[0].address and 0 < context.master_port < 65536
    group.close()
    assert gone(list(group.pids.values()))


def test_ranks_rendezvous_by_their_context(cluster: Cluster) -> None:
    group = cluster.launch("actor", "worker_group_workers:Echo")
    assert group.call("all_reduce", 1.0) == [3.0, 3.0]
    group.close()


def test_calls_of_several_groups_run_at_once_and_a_wait_can_be_limited(cluster: Cluster) -> None:
    actor = cluster.launch("actor", "worker_group_workers:Faulty")
    reward = cluster.launch("reward", "worker_group_workers:Echo")
    slow, quick = actor.start("sleep_unless", 0, ""), reward.start("add", 5)
    assert quick.wait() == [5] and quick.done() and not slow.done()
    with pytest.raises(TimeoutError, match=r"0\.5 s: actor rank 1 'sleep_unless'"):
        slow.wait(timeout_s=0.5)
    assert wait_all([reward.start("add", 6), actor.start("sleep_unless", 0, "", ranks=[0])]) == [[6], [None]]
    reward.call("add", 1)
    actor.close(grace_s=0)
    reward.close()
    assert gone([*actor.pids.values(), *reward.pids.values()])


def test_the_first_failure_ends_the_call_and_the_group(cluster: Cluster) -> None:
    group, pids = faulty(cluster)
    start = time.monotonic()
    with pytest.raises(WorkerFailure) as caught:
        group.call("sleep_unless", 1, "raise")
    assert time.monotonic() - start < 10
    assert (caught.value.component, caught.value.rank, caught.value.method) == ("actor", 1, "sleep_unless")
    message = str(caught.value)
    assert message.startswith("actor rank 1 raised in 'sleep_unless'\n") and "\x1b" not in message
    assert caught.value.headline == "actor rank 1 raised in 'sleep_unless': KeyError: 'the missing thing'"
    assert 'raise KeyError("the missing thing")' in message and "worker_group_workers.py" in message
    assert gone(pids)
    with pytest.raises(AssertionError, match="actor was closed or has failed"):
        group.call("child_pid")


def test_a_killed_process_is_reported_as_such(cluster: Cluster) -> None:
    group, pids = faulty(cluster)
    start = time.monotonic()
    with pytest.raises(WorkerFailure) as caught:
        group.call("sleep_unless", 0, "kill")
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert message.startswith(f"actor rank 0 lost its process (pid {group.pids[0]}): it died in 'sleep_unless'\n")
    assert caught.value.headline == message.partition("\n")[0]
    assert gone(pids)


def test_a_death_is_blamed_rather_than_the_collective_that_it_broke(cluster: Cluster) -> None:
    group = cluster.launch("actor", "worker_group_workers:Faulty")
    with pytest.raises(WorkerFailure, match="actor rank 1 lost its process"):
        group.call("break_collective")
    assert gone(list(group.pids.values()))


def test_a_user_error_comes_back_as_itself(cluster: Cluster) -> None:
    group, pids = faulty(cluster)
    with pytest.raises(UserError) as caught:
        group.call("sleep_unless", 1, "user")
    assert type(caught.value) is UserError
    assert str(caught.value) == "data.train_data_paths: no such folder"
    assert gone(pids)
    with pytest.raises(UserError) as caught:
        cluster.launch("actor", "worker_group_workers:Faulty", {"fail_to_build": "actor.model.model_path: gone"})
    assert str(caught.value) == "actor.model.model_path: gone"


def test_a_worker_that_cannot_be_built_is_named(cluster: Cluster) -> None:
    with pytest.raises(WorkerFailure, match=r"actor rank [01] raised in 'worker_group_workers:Missing'") as caught:
        cluster.launch("actor", "worker_group_workers:Missing")
    assert "no attribute 'Missing'" in str(caught.value)


def test_close_lets_workers_close_and_leaves_no_process(cluster: Cluster, tmp_path: Path) -> None:
    group = cluster.launch("actor", "worker_group_workers:Closer", {"folder": str(tmp_path)})
    pids = list(group.pids.values())
    assert all(map(exists, pids))
    group.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed_0", "closed_1"]
    assert gone(pids)
    group.close()


def test_close_does_not_wait_for_a_busy_worker_past_its_grace(cluster: Cluster) -> None:
    group, pids = faulty(cluster)
    group.start("sleep_unless", -1, "")
    start = time.monotonic()
    group.close(grace_s=0.5)
    assert time.monotonic() - start < 8
    assert gone(pids)


def run_driver(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, driver_path())), **env}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def driver_path() -> list[Path]:
    """Where this test's workers and the package lie."""
    return [HERE, HERE.parent.parent]


CONNECT = """
import sys, time
from rlinf_vlm.cluster.ray_cluster import connect
from rlinf_vlm.types import UserError
start = time.monotonic()
try:
    with connect(num_nodes={num_nodes}, node_wait_timeout_s=2) as cluster:
        sys.stdout.write(" ".join(node.address for node in cluster.nodes))
except UserError as error:
    sys.stdout.write(f"{{time.monotonic() - start:.1f}} {{error}}")
"""


def test_a_cluster_is_joined_by_its_address_and_must_have_the_nodes(cluster: Cluster) -> None:
    address = ray.get_runtime_context().gcs_address
    joined = run_driver(CONNECT.format(num_nodes=1), RAY_ADDRESS=address)
    assert joined.stdout == cluster.nodes[0].address, joined.stderr
    result = run_driver(CONNECT.format(num_nodes=3), RAY_ADDRESS=address)
    seconds, _, message = result.stdout.partition(" ")
    assert 2 <= float(seconds) < 20, result.stderr
    assert message.startswith(f"cluster.num_nodes=3, but after 2 s the Ray cluster at {address} has 1 (")
    assert message.endswith("set cluster.num_nodes=1") and "\n" not in message
    assert cluster.launch("reward", "worker_group_workers:Echo").call("add", 1) == [1]


def test_an_address_where_something_else_listens_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_nodes, "STATUS_TIMEOUT_S", 4.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError, match=f"{address}: what listens there did not answer 'ray status' within 4 s"):
            ray_nodes.join_or_start(address)
    assert time.monotonic() - start < 10


def test_an_address_where_nothing_answers_is_a_user_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        result = run_driver(CONNECT.format(num_nodes=1), RAY_ADDRESS=address)
    assert result.returncode == 0, result.stderr
    seconds, _, message = result.stdout.partition(" ")
    assert float(seconds) < 10 and "\n" not in message
    assert message.startswith(f"RAY_ADDRESS={address}: nothing answers there") and "unset RAY_ADDRESS" in message


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "host:port"])
def test_an_address_of_another_form_is_a_user_error(address: str) -> None:
    with pytest.raises(UserError, match="is not of the form host:port"):
        ray_nodes.join_or_start(address)


def test_more_nodes_than_one_machine_needs_an_address() -> None:
    result = run_driver(CONNECT.format(num_nodes=2), RAY_ADDRESS="")
    assert "cluster.num_nodes=2, but RAY_ADDRESS is not set" in result.stdout, result.stderr


GPU_BOOKING = """
import json, sys, ray
from rlinf_vlm.cluster.placement import Topology, parse_component_placement
from rlinf_vlm.cluster.ray_cluster import Cluster
from rlinf_vlm.cluster.ray_nodes import wait_for_nodes
from rlinf_vlm.types import UserError
noset = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
ray.init(address="local", num_gpus=3, include_dashboard=False, object_store_memory=10**8, runtime_env=noset)
nodes = wait_for_nodes("local", 1, 5)
topology = Topology(accelerators=tuple(node.gpus for node in nodes))
cluster = Cluster(nodes, topology)
cluster.reserve(parse_component_placement({"actor,rollout": "0-1", "critic": "1-2:0"}, topology))
seen = {}
for name in ("actor", "rollout", "critic"):
    group = cluster.launch(name, "worker_group_workers:Echo")
    seen[name] = [(where["visible"], where["context"].device) for where in group.call("where")]
try:
    Cluster(nodes, topology).reserve(parse_component_placement({"actor": "0"}, topology), timeout_s=1)
except UserError as error:
    seen["second"] = str(error)
cluster.close()
sys.stdout.write(json.dumps({"gpus": topology.accelerators, **seen}))
"""


def test_booked_gpus_are_shared_by_colocated_components_and_by_nobody_else() -> None:
    """The accounting needs no GPU: Ray is told that there are three, with the ids of the driver's environment."""
    result = run_driver(GPU_BOOKING, RAY_ADDRESS="", CUDA_VISIBLE_DEVICES="4,5,6")
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["gpus"] == [3]
    assert seen["actor"] == seen["rollout"] == [["4", "cuda:0"], ["5", "cuda:0"]]
    assert seen["critic"] == [["5,6", "cuda:0"]]
    assert seen["second"].startswith("cluster.component_placement needs 1 whole GPUs (1 on ")
    assert "after 1 s Ray has 0 of 3 free" in seen["second"]


@pytest.mark.timeout(120)
def test_ctrl_c_ends_driver_and_workers(tmp_path: Path) -> None:
    pids_file, log = tmp_path / "pids", tmp_path / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, driver_path()))}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(HERE / "interrupted_driver.py"), str(pids_file)]
    with log.open("w") as output:
        driver = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while not pids_file.exists() and driver.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert pids_file.exists(), log.read_text()
            pids = json.loads(pids_file.read_text())
            assert len(pids) == 4 and all(map(exists, pids))
            start = time.monotonic()
            # A terminal sends Ctrl-C to the whole foreground process group, Ray's processes included.
            os.killpg(driver.pid, signal.SIGINT)
            driver.wait(timeout=15)
            assert time.monotonic() - start < 15
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode != 0
    assert gone(pids)
    text = log.read_text()
    assert text.count("KeyboardInterrupt") == 1, text
    assert "pid=" not in text, text
