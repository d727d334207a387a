"""SIGTERM as a question: the training saves and ends (pre-emptible nodes)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOGETHER_S = 1.0
"""SIGTERMs that come so close are one question: ``timeout`` and some schedulers signal a process and then its group."""


class GracefulStop:
    """While it listens, the first SIGTERM is noted; a second one does what SIGTERM did before."""

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._before: Any = None

    def listen(self) -> None:
        """Starts to listen; on the main thread."""
        self._before = signal.signal(signal.SIGTERM, self._note)

    def restore(self) -> None:
        """Gives SIGTERM back. Can be repeated."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: object) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
        elif time.monotonic() - self._asked_at > TOGETHER_S:
            self.restore()
            signal.raise_signal(number)


@contextmanager
def sheltered() -> Iterator[None]:
    """Processes that are started in the block, from this thread, never take SIGTERM; they are ended by other means.

    For Ray's own: schedulers send SIGTERM to every process of a job, and without Ray's the ranks end before the
    training has saved. They inherit that it is blocked here. It is not lost: at the latest it comes after the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
