"""Joining or starting Ray, and the nodes that it has.

Dataflow: RAY_ADDRESS -> ``join_or_start`` -> ``wait_for_nodes`` -> Node per machine, in the run's order.
Invariants: every wait is bounded; workers import what the driver can import; nothing is reported to anybody.
It books nothing and starts no worker.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import ray

from rlinf_vlm.cluster.environment import set_ray_environment
from rlinf_vlm.types import UserError

CONNECT_TIMEOUT_S = 5.0
STATUS_TIMEOUT_S = 20.0
POLL_S = 1.0
"""Longest uninterrupted wait, so that the driver's signal handlers run."""
OBJECT_STORE_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster; ``cores`` as Ray counts them (0 when it was told to offer none)."""

    node_id: str
    address: str
    gpus: int
    cores: int


def join_or_start(address: str, object_store_bytes: int = OBJECT_STORE_BYTES) -> None:
    """Makes this process the driver of the cluster at ``address`` ("host:port" or "auto"), or of a new one ("local").

    A new one has no dashboard and an object store of ``object_store_bytes``. Raises UserError in a bounded time.
    """
    set_ray_environment()
    settings: dict[str, Any] = {
        "log_to_driver": True,
        "logging_level": logging.ERROR,
        "runtime_env": {
            "env_vars": {
                "PYTHONPATH": os.pathsep.join(_import_path()),
                "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            }
        },
    }
    if address == "local":
        settings |= {
            "include_dashboard": False,
            "object_store_memory": object_store_bytes,
            "_system_config": {"prestart_worker_first_driver": False},
        }
    else:
        _check_address(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **settings)
        # Ray puts a handler of its own there, which ends the driver without closing anything.
        signal.signal(signal.SIGTERM, handler)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        remedy = "is the cluster up, and does this machine belong to it ('ray status')?"
        where = "starting Ray on this machine" if address == "local" else f"RAY_ADDRESS={address}"
        raise UserError(f"{where}: {str(error).strip().splitlines()[0]}; {remedy}") from error


def _check_address(address: str) -> None:
    """Raises UserError unless a Ray cluster answers there: ``ray.init`` itself would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={address!r} is not of the form host:port, 'auto' or 'local'")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: nothing answers there ({error}); start Ray ('ray start --head') or unset "
            f"RAY_ADDRESS to run on this machine alone"
        ) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        status = subprocess.run(command, capture_output=True, text=True, timeout=STATUS_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"RAY_ADDRESS={address}: what listens there did not answer 'ray status' within {STATUS_TIMEOUT_S:g} s; "
            f"give the address that 'ray start --head' printed"
        ) from error
    if status.returncode:
        reason = (status.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"RAY_ADDRESS={address}: 'ray status' fails there: {reason}")


def _import_path() -> list[str]:
    """The driver's import path without the interpreter's own part, so that workers import what the driver can."""
    own = tuple({os.path.realpath(prefix) + os.sep for prefix in (sys.prefix, sys.base_prefix)})
    paths = [os.path.abspath(path) for path in sys.path]
    found = [path for path in paths if os.path.exists(path) and not os.path.realpath(path).startswith(own)]
    return list(dict.fromkeys(found))


def wait_for_nodes(address: str, num_nodes: int, timeout_s: float) -> tuple[Node, ...]:
    """The first ``num_nodes`` nodes that are up: the driver's, then by address. Raises UserError after the limit."""
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = _alive_nodes()
        if len(nodes) >= num_nodes:
            return nodes[:num_nodes]
        if time.monotonic() >= deadline:
            raise UserError(
                f"cluster.num_nodes={num_nodes}, but after {timeout_s:g} s the Ray cluster at {address} has "
                f"{len(nodes)} ({', '.join(node.address for node in nodes)}); run 'ray start' on the others, or set "
                f"cluster.num_nodes={len(nodes)}"
            )
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))


def _alive_nodes() -> tuple[Node, ...]:
    here = ray.get_runtime_context().get_node_id()
    found = [
        Node(
            node_id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            gpus=int(entry["Resources"].get("GPU", 0)),
            cores=int(entry["Resources"].get("CPU", 0)),
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]
    return tuple(sorted(found, key=lambda node: (node.node_id != here, _address_key(node.address), node.node_id)))


def _address_key(address: str) -> tuple[int, int, str]:
    """Numbers in numeric order, names after them."""
    with contextlib.suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        return parsed.version, int(parsed), ""
    return 9, 0, address
