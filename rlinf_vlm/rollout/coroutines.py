"""An event loop in a thread of its own, for the coroutines of environments.

    awaitable --begin--> the loop of this thread --> Future, which any other loop can wait for

A coroutine that computes, or sleeps without awaiting, blocks the loop that it runs on. Here that is not the loop of the
engine and of the clocks: those that share this one come too late, and the next ones find a new loop (``mend``). All
coroutines of a rollout worker run on one loop, for as long as it stands, so that they can share what belongs to a loop
(a lock, an HTTP session).
Not here: how long anyone waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any

PATIENCE = 1.0
"""Seconds in which a loop that is not blocked begins something."""


class Coroutines:
    """Its loop is begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, awaitable: Awaitable[Any]) -> Future[Any]:
        """Awaits it; to cancel the future cancels that. Any thread may call."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="coroutines", daemon=True).start()
            return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop)

    async def mend(self) -> None:
        """Leaves the loop behind, if there is one and it is blocked."""
        loop = self._loop
        if loop is None:
            return
        answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop)
        done, _ = await asyncio.wait({asyncio.wrap_future(answer)}, timeout=PATIENCE)
        if not done:
            with self._lock:
                if self._loop is loop:
                    self._loop = None
            loop.call_soon_threadsafe(loop.stop)

    def close(self) -> None:
        """Ends the loop, and what still runs on it."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # which cancels what is left
        runner.get_loop().run_forever()


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    """What it comes to. What would end the loop is a RuntimeError, and so is a cancellation that nobody asked for."""
    try:
        return await awaitable
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError(repr(error)) from error
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(repr(error)) from error
