"""SIGTERM as a question: the training saves and ends (pre-emptible nodes)."""

from __future__ import annotations

import signal
from typing import Any


class GracefulStop:
    """While it listens, the first SIGTERM is noted; a second one does what SIGTERM did before."""

    def __init__(self) -> None:
        self.asked = False
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
        self.asked = True
        self.restore()
