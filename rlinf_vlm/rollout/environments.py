"""An environment behind a clock: whatever it does, its conversation goes on or ends, and no other one notices.

    TimedEnvironment.open(build) -> reset -> step .. -> close, each awaited for at most ``seconds``

Each call runs in a thread of its own, so that one that blocks holds up nothing but its own conversation; what is a
coroutine is awaited on the caller's event loop. Whatever goes wrong is an ``EnvironmentFailed`` with one line. A thread
cannot be ended: a call that hangs is left behind, and ends with the process. Code that holds Python's lock for long (a
C extension that computes) holds up everyone: it belongs into a process of the environment's own.
Not here: what the calls mean.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from rlinf_vlm.envs import make_env
from rlinf_vlm.envs.protocol import BuildEnv, Environment, EnvSample
from rlinf_vlm.rollout.observations import ShownMessage, read_message
from rlinf_vlm.types import RowError

SHOWN = 300
"""Characters of an error that are kept."""


class EnvironmentFailed(Exception):
    """The environment raised, took too long, or gave what no environment may give."""


class TimedEnvironment:
    """One conversation's environment."""

    def __init__(self, environment: Environment, seconds: float) -> None:
        """seconds: that a call may take."""
        self._environment = environment
        self._seconds = seconds

    @classmethod
    async def open(
        cls, build: BuildEnv, sample: EnvSample, args: Mapping[str, Any], seconds: float
    ) -> TimedEnvironment:
        """Makes it. Raises EnvironmentFailed."""
        return cls(await _timed("build_env", seconds, lambda: make_env(build, sample, args)), seconds)

    async def reset(self) -> ShownMessage | None:
        """What the environment begins with, if it shows anything. Raises EnvironmentFailed."""
        found = await _timed("reset", self._seconds, self._environment.reset)
        if not isinstance(found, tuple) or len(found) != 2:
            raise EnvironmentFailed(f"reset gave {_shown(found)}, not (observation, info)")
        return await self._show(found[0])

    async def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        """(observation, done, info). Raises EnvironmentFailed."""
        found = await _timed("step", self._seconds, lambda: self._environment.step(response_text))
        if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[1], bool):
            raise EnvironmentFailed(f"step gave {_shown(found)}, not (observation, done, info) with done a bool")
        observation, done, info = found
        return observation, done, _plain(info)

    async def show(self, observation: Any) -> ShownMessage:
        """The message of an observation that the policy has to be shown. Raises EnvironmentFailed."""
        shown = await self._show(observation)
        if shown is None:
            raise EnvironmentFailed("step gave an empty observation, but is not done: the policy has nothing to answer")
        return shown

    async def close(self) -> str:
        """Closes it, and says what went wrong; "" where nothing did."""
        try:
            await _timed("close", self._seconds, self._environment.close)
        except EnvironmentFailed as error:
            return str(error)
        return ""

    async def _show(self, observation: Any) -> ShownMessage | None:
        if observation is None or (isinstance(observation, Mapping | str | list | tuple) and not observation):
            return None
        found = await _timed(
            "format_observation", self._seconds, lambda: self._environment.format_observation(observation)
        )
        try:
            return read_message(found)
        except RowError as error:
            raise EnvironmentFailed(str(error)) from error


async def _timed(name: str, seconds: float, call: Callable[[], Any]) -> Any:
    """What ``call`` comes to, awaited if it is a coroutine. Raises EnvironmentFailed."""

    async def come_to() -> Any:
        found = await asyncio.wrap_future(in_thread(call))
        return await found if inspect.isawaitable(found) else found

    # Gathered, so that whatever it raises is handed over; a cancellation from outside is not caught.
    found: Any
    (found,) = await asyncio.gather(asyncio.wait_for(come_to(), seconds), return_exceptions=True)
    if isinstance(found, TimeoutError):
        raise EnvironmentFailed(f"{name} took longer than env.time_limit={seconds:g} seconds")
    if isinstance(found, Exception):
        raise EnvironmentFailed(f"{name} raised {type(found).__name__}: {_shown(found)}") from found
    if isinstance(found, BaseException):
        raise found
    return found


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Runs ``call`` in a thread that no one waits for at the end of the process."""
    future: Future[Any] = Future()

    def run() -> None:
        with _Handing(future):
            found = call()
            if not future.cancelled():
                future.set_result(found)

    threading.Thread(target=run, name="environment", daemon=True).start()
    return future


class _Handing:
    """Hands what is raised inside to a future."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and not self._future.cancelled():
            # What would end a thread, or a process, ends this conversation alone.
            self._future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        return True


def _plain(info: Any) -> dict[str, Any]:
    """``info`` as it will stand in the record. Raises EnvironmentFailed where JSON does not hold it."""
    if not isinstance(info, Mapping):
        raise EnvironmentFailed(f"step gave as info {_shown(info)}, not a mapping")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(info), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvironmentFailed(f"step gave an info that is no plain data: {_shown(error)}") from error
    return plain


def _shown(found: object) -> str:
    text = str(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"
    return " ".join(text[: 4 * SHOWN].split())[:SHOWN]
