"""An environment behind a clock: whatever it does, its conversation goes on or ends, and no other one notices.

    TimedEnvironment.open(build) -> reset -> step .. -> close, each awaited for at most ``seconds``

Each call runs in a thread of its own, so that one that blocks holds up nothing but its own conversation; what is a
coroutine is awaited on an event loop beside the caller's (``Coroutines``). What a message shows is read and encoded in
a thread and on the clock as well. Whatever goes wrong is an ``EnvironmentFailed`` with one line. A thread cannot be
ended: a call that hangs is left behind, and ends with the process; an environment that is made too late is closed then.
Code that holds Python's lock for long (a C extension that computes) holds up everyone: it belongs into a process of the
environment's own.
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
from rlinf_vlm.rollout.coroutines import Coroutines
from rlinf_vlm.rollout.observations import ShownMessage, read_message
from rlinf_vlm.types import RowError

SHOWN = 300
"""Characters of an error that are kept."""


class EnvironmentFailed(Exception):
    """The environment raised, took too long, or gave what no environment may give."""


class TimedEnvironment:
    """One conversation's environment."""

    def __init__(self, environment: Environment, clock: _Clock) -> None:
        """Use ``open``."""
        self._environment = environment
        self._clock = clock

    @classmethod
    async def open(
        cls, build: BuildEnv, sample: EnvSample, args: Mapping[str, Any], seconds: float, coroutines: Coroutines
    ) -> TimedEnvironment:
        """Makes it. seconds: that a call may take; coroutines: where those of its methods run. Raises
        EnvironmentFailed."""
        clock = _Clock(seconds, coroutines)
        return cls(await clock.timed("build_env", lambda: make_env(build, sample, args), too_late=clock.closed), clock)

    async def reset(self) -> ShownMessage | None:
        """What the environment begins with, if it shows anything. Raises EnvironmentFailed."""
        found = await self._clock.timed("reset", self._environment.reset)
        if not isinstance(found, tuple) or len(found) != 2:
            raise EnvironmentFailed(f"reset gave {_shown(found)}, not (observation, info)")
        return await self._show(found[0])

    async def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        """(observation, done, info). Raises EnvironmentFailed."""
        found = await self._clock.timed("step", lambda: self._environment.step(response_text))
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
            await self._clock.timed("close", self._environment.close)
        except EnvironmentFailed as error:
            return str(error)
        return ""

    async def _show(self, observation: Any) -> ShownMessage | None:
        if observation is None or (isinstance(observation, Mapping | str | list | tuple) and not observation):
            return None
        message = await self._clock.timed(
            "format_observation", lambda: self._environment.format_observation(observation)
        )
        # Decoding and encoding a large picture takes seconds.
        shown: ShownMessage = await self._clock.timed("format_observation", lambda: read_message(message))
        return shown


class _Clock:
    """Awaits the calls of one environment."""

    def __init__(self, seconds: float, coroutines: Coroutines) -> None:
        self._seconds = seconds
        self._coroutines = coroutines

    async def timed(self, name: str, call: Callable[[], Any], too_late: Callable[[Any], None] | None = None) -> Any:
        """What ``call`` comes to, awaited if it is a coroutine. too_late: is given what it comes to when nobody waits
        for that any more. Raises EnvironmentFailed."""
        waited = asyncio.ensure_future(self._come_to(call, too_late))
        try:
            done, _ = await asyncio.wait({waited}, timeout=self._seconds)
        finally:
            waited.cancel()  # does nothing to what is done
        if not done:
            await self._coroutines.mend()
            raise EnvironmentFailed(f"{name} took longer than env.time_limit={self._seconds:g} seconds")
        error = waited.exception()
        if isinstance(error, RowError):
            raise EnvironmentFailed(str(error)) from error
        if error is not None:
            raise EnvironmentFailed(f"{name} raised {type(error).__name__}: {_shown(error)}") from error
        return waited.result()

    def closed(self, environment: Environment) -> None:
        """Closes one that nobody waits for; its thread is this one."""
        closing = environment.close()
        if inspect.isawaitable(closing):
            self._coroutines.begin(closing)

    async def _come_to(self, call: Callable[[], Any], too_late: Callable[[Any], None] | None) -> Any:
        found = await asyncio.wrap_future(in_thread(call, too_late))
        return await asyncio.wrap_future(self._coroutines.begin(found)) if inspect.isawaitable(found) else found


def in_thread(call: Callable[[], Any], too_late: Callable[[Any], None] | None = None) -> Future[Any]:
    """Runs ``call`` in a thread that no one waits for at the end of the process. too_late: see ``_Clock.timed``."""
    future: Future[Any] = Future()

    def run() -> None:
        with _Handing(future):
            found = call()
            if future.set_running_or_notify_cancel():
                future.set_result(found)
            elif too_late is not None:
                too_late(found)

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
            # What would end a thread, or a process, ends this conversation alone; and no future takes a StopIteration.
            plain = isinstance(error, Exception) and not isinstance(error, StopIteration)
            self._future.set_exception(error if plain else RuntimeError(repr(error)))
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
