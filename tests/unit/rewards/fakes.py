"""Rewards that behave badly, for the pool."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from rlinf_vlm.rewards.protocol import RewardInput, Score


class Unruly:
    """Does what the prediction says; else gives the length of the prediction and the number of its process."""

    def __init__(self, *, factor: float = 1.0) -> None:
        self._factor = factor

    def __call__(self, item: RewardInput) -> Score:
        command = item.prediction
        if command == "hang":
            time.sleep(600)
        if command == "spin":
            signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
            return Score(value=float(len(str(9**9**9))))
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "exit":
            os._exit(3)
        if command == "quit":
            raise SystemExit(0)
        if command == "raise":
            raise RuntimeError("no such answer")
        if command == "memory":
            return Score(value=float(len(bytearray(64 << 30))))
        if command == "print":
            os.write(1, b"not part of the protocol\n")
        if command == "nan":
            return Score(value=float("nan"))
        return Score(value=self._factor * len(command), parts={"pid": float(os.getpid())})


class Numbered:
    """The first answer gets 1, the second 2, and so on."""

    def __init__(self) -> None:
        self._judged = 0

    def __call__(self, item: RewardInput) -> Score:
        self._judged += 1
        return Score(value=float(self._judged))


async def slow_length(item: RewardInput) -> Score:
    """Waits a little: an async reward."""
    await asyncio.sleep(0.05)
    return Score(value=float(len(item.prediction)))


def says_what_was_asked(item: RewardInput) -> Score:
    """Reads the question."""
    return Score(value=1.0, detail=item.metadata["question"])


def no_score(item: RewardInput) -> float:
    """Forgets to give a Score."""
    return 1.0


class Broken:
    """Cannot be made."""

    def __init__(self) -> None:
        raise ValueError("no model to judge with")
