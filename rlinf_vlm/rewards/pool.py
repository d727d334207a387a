"""Rewards in processes of their own, each task with a time limit.

Dataflow: ``RewardPool(name, ..)`` is itself an async reward: input -> a waiting thread -> a worker process
(``pool_worker``) -> ``Score``. A worker that does not answer in time, or that ends, is killed and another one started;
the score then has status "timeout" or "died".
Invariants: every input gets exactly one score, whatever the reward does; no task waits for a hanging one longer than
the time limit; nothing is forked (workers are fresh interpreters: no locks, no GPU context, no torch taken over).
Not here: what a failure means for training (the runner decides by ``Score.status``).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from rlinf_vlm.rewards.pool_worker import PoolSpec
from rlinf_vlm.rewards.protocol import DIED, ERROR, TIMEOUT, RewardInput, Score, failed, score_all
from rlinf_vlm.types import UserError

START_SECONDS = 120.0
"""How long a worker may take to import its reward."""


class RewardPool:
    """A reward computed in ``num_workers`` processes. Threads of any event loop may use it at the same time."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        num_workers: int,
        time_limit: float = 10.0,
        memory_gib: float = 8.0,
    ) -> None:
        """name, options: as for ``make_reward``; time_limit: seconds a task may take; memory_gib: address space of a
        worker. The first worker is started now: UserError when it cannot make the reward."""
        if num_workers < 1 or time_limit <= 0:
            raise UserError(f"reward pool: num_workers={num_workers} and time_limit={time_limit} must be above 0")
        self._spec = PoolSpec(name=name, options=dict(options or {}), time_limit=time_limit, memory_gib=memory_gib)
        self._tasks: queue.SimpleQueue[tuple[RewardInput, Future[Score]] | None] = queue.SimpleQueue()
        self._closed = False
        first = _Worker(self._spec)
        self._threads = [
            threading.Thread(target=self._serve, args=(first if number == 0 else None,), daemon=True)
            for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    async def __call__(self, item: RewardInput) -> Score:
        """The score of one input; never raises for what the reward does."""
        return await asyncio.wrap_future(self.submit(item))

    def submit(self, item: RewardInput) -> Future[Score]:
        """The score of one input, later. Raises RuntimeError when the pool is closed."""
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        future: Future[Score] = Future()
        self._tasks.put((item, future))
        return future

    def score(self, items: Sequence[RewardInput]) -> list[Score]:
        """Scores in the order of ``items``, for callers without an event loop."""
        return asyncio.run(score_all(self, items, at_once=max(1, len(items))))

    def close(self) -> None:
        """Ends the workers once all that was submitted is scored."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> RewardPool:
        """The pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        self.close()

    def _serve(self, worker: _Worker | None) -> None:
        """One thread: tasks to one worker at a time, that is replaced when it fails."""
        try:
            while (task := self._tasks.get()) is not None:
                item, future = task
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    worker = worker or _Worker(self._spec)
                    score = worker.score(item, self._spec.time_limit)
                except (UserError, OSError) as error:  # a worker that does not start
                    score = failed(DIED, str(error))
                if score.status in (TIMEOUT, DIED) and worker is not None and not worker.is_usable():
                    worker.kill()
                    worker = None
                future.set_result(score)
        finally:
            if worker is not None:
                worker.kill()


class _Worker:
    """One process and the connection to it."""

    def __init__(self, spec: PoolSpec) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self._usable = True
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlinf_vlm.rewards.pool_worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        try:
            self._connection.send(spec)
            problem = self._connection.recv() if self._connection.poll(START_SECONDS) else "no answer at start"
        except (EOFError, OSError):
            problem = f"the process ended at its start ({self._ending()})"
        if problem is not None:
            self.kill()
            raise UserError(problem if problem.startswith("reward") else f"reward {spec.name!r}: {problem}")

    def score(self, item: RewardInput, seconds: float) -> Score:
        """One score; afterwards ``is_usable`` says whether the process can go on."""
        try:
            message = pickle.dumps(item)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            return failed(ERROR, f"the input cannot be sent to another process: {error}"[:500])
        try:
            self._connection.send_bytes(message)
            if not self._connection.poll(seconds):
                self._usable = False
                return failed(TIMEOUT, f"more than {seconds:g} s")
            return self._connection.recv()
        except (EOFError, OSError):
            self._usable = False
            return failed(DIED, f"the process that computed it ended ({self._ending()})")

    def is_usable(self) -> bool:
        """Whether the process answered the last task itself."""
        return self._usable

    def kill(self) -> None:
        """Ends the process, however busy it is."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _ending(self) -> str:
        """How the process ended, as far as is known after a moment."""
        end = time.monotonic() + 1.0
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
