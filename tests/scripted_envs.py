"""Environments for tests: they follow a script, whatever the policy says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from rlinf_vlm.envs.protocol import EnvSample


class Showing:
    """Shows a picture after the first turn, a text after the second, and is done after the third."""

    def __init__(self, sample: EnvSample, args: Mapping[str, Any]) -> None:
        self.sample = sample
        self.args = args
        self.heard: list[str] = []
        self.closed = 0

    def reset(self) -> tuple[Any, dict[str, Any]]:
        return {}, {}

    def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        self.heard.append(response_text)
        return {"turn": len(self.heard)}, len(self.heard) == 3, {"turns": len(self.heard)}

    def format_observation(self, observation: Any) -> dict[str, Any]:
        if observation["turn"] > 1:
            return {"role": "user", "content": "Look."}
        shade = 60 * (self.sample.row + 1) % 256
        picture = Image.new("RGB", (84, 56), (shade, 20, 200))
        parts = [{"type": "text", "text": "What "}, {"type": "image", "image": picture}]
        return {"role": "user", "content": [*parts, {"type": "text", "text": " colour?"}]}

    def close(self) -> None:
        self.closed += 1


class Awaited(Showing):
    """The same by coroutines, with a picture of its own before the first turn."""

    async def reset(self) -> tuple[Any, dict[str, Any]]:
        await asyncio.sleep(0)
        return {"turn": 1}, {}

    async def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        await asyncio.sleep(0.001)
        return super().step(response_text)

    async def format_observation(self, observation: Any) -> dict[str, Any]:
        return super().format_observation(observation)

    async def close(self) -> None:
        super().close()


class Troubled(Showing):
    """Does in its second step what args["trouble"] says, in a third of the rows or where args["always"] is true."""

    def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        found = super().step(response_text)
        always = self.args.get("always", False)
        if len(self.heard) < self.args.get("turn", 2) or not (always or self.sample.row % 3 == 0):
            return found
        return getattr(self, self.args["trouble"])(found)

    def raises(self, found: Any) -> Any:
        raise RuntimeError("no idea\nin two lines")

    def leaves(self, found: Any) -> Any:
        raise SystemExit(3)

    def hangs(self, found: Any) -> Any:
        time.sleep(1000)

    def spins(self, found: Any) -> Any:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            pass
        return found

    def runs_out(self, found: Any) -> Any:
        return next(iter(()))

    def loses_its_server(self, found: Any) -> Any:
        raise TimeoutError("no answer")

    def is_blank(self, found: Any) -> Any:
        return {"picture": Image.new("RGB", (0, 5))}, False, {}

    def is_vast(self, found: Any) -> Any:
        return {"picture": Image.new("L", (20_000, 4_000))}, False, {}

    def gives_nothing(self, found: Any) -> Any:
        return None

    def shows_nothing(self, found: Any) -> Any:
        return None, False, {}

    def talks(self, found: Any) -> Any:
        return {"text": "word " * 2_000_000}, False, {}

    def shows_marks(self, found: Any) -> Any:
        return {"text": "<|image_pad|>"}, False, {}

    def breaks(self, found: Any) -> Any:
        return {"picture": b"\x89PNG no picture"}, False, {}

    def tells_secrets(self, found: Any) -> Any:
        return found[0], found[1], {"handle": object()}

    def format_observation(self, observation: Any) -> Any:
        if "text" in observation:
            return {"role": "user", "content": observation["text"]}
        if "picture" in observation:
            return {"role": "user", "content": [{"type": "image", "image": observation["picture"]}]}
        return super().format_observation(observation)


class AwaitedTrouble(Showing):
    """Does in its second step, a coroutine, what args["trouble"] says."""

    async def step(self, response_text: str) -> tuple[Any, bool, dict[str, Any]]:
        found = super().step(response_text)
        if len(self.heard) == 2:
            await getattr(self, self.args["trouble"])()
        return found

    async def waits(self) -> None:
        await asyncio.sleep(1000)

    async def blocks(self) -> None:
        time.sleep(20)

    async def will_not_stop(self) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                continue

    async def is_cancelled(self) -> None:
        raise asyncio.CancelledError

    async def leaves(self) -> None:
        raise SystemExit(3)

    async def loses_its_server(self) -> None:
        raise TimeoutError("no answer")


class NotClosing(Showing):
    """Raises when it is closed."""

    def close(self) -> None:
        raise OSError("the door is stuck")


def showing(*, sample: EnvSample, args: Mapping[str, Any]) -> Showing:
    return Showing(sample, args)


def awaited(*, sample: EnvSample, args: Mapping[str, Any]) -> Awaited:
    return Awaited(sample, args)


def troubled(*, sample: EnvSample, args: Mapping[str, Any]) -> Troubled:
    return Troubled(sample, args)


def not_closing(*, sample: EnvSample, args: Mapping[str, Any]) -> NotClosing:
    return NotClosing(sample, args)


def without_server(*, sample: EnvSample, args: Mapping[str, Any]) -> Showing:
    raise ConnectionRefusedError("no server")
