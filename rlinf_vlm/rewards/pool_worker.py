"""The process in which a pool computes rewards: ``python -m rlinf_vlm.rewards.pool_worker FD``.

Dataflow: over the connection with file descriptor FD: first ``PoolSpec``, answered by None (ready) or a text (why not);
then ``RewardInput`` -> ``Score``, one at a time, until the connection closes.
Invariants: a task that is not finished in twice the time limit ends this process by itself (SIGALRM), so that nothing
goes on computing when its parent was killed; memory is bounded; what the reward prints goes to standard error.
Not here: the time limit itself, which the parent keeps by killing.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rlinf_vlm.rewards import make_reward
from rlinf_vlm.rewards.protocol import score_all
from rlinf_vlm.types import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """What a worker computes: a reward's name and options, seconds a task may take, GiB of address space."""

    name: str
    options: dict[str, Any]
    time_limit: float
    memory_gib: float


def main(descriptor: int) -> None:
    """Serves one connection until it closes."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with Connection(descriptor) as connection:
        spec: PoolSpec = connection.recv()
        try:
            reward = make_reward(spec.name, spec.options)
        except UserError as error:
            connection.send(str(error))
            return
        bound = int(spec.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        connection.send(None)
        while True:
            try:
                item = connection.recv()
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_REAL, 2 * spec.time_limit + 1.0)
            (score,) = asyncio.run(score_all(reward, [item]))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send(score)


if __name__ == "__main__":
    main(int(sys.argv[1]))
