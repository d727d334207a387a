"""The environments of tools, spoken with by a model with random weights: whatever it says is heard as a call.

What it means follows from the text alone, so that the same words always lead to the same conversation.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from rlinf_vlm.envs import crop_zoom, geo3k_tool
from rlinf_vlm.envs.protocol import Environment, EnvSample
from rlinf_vlm.envs.tool_calls import CLOSE, OPEN


def call(name: str, **arguments: object) -> str:
    """A call of a tool."""
    return f"{OPEN}{json.dumps({'name': name, 'arguments': arguments})}{CLOSE}"


class Heard:
    """An environment that hears one of ``calls`` in place of each turn."""

    def __init__(self, inner: Environment, calls: tuple[str, ...]) -> None:
        self._inner = inner
        self._calls = calls
        self.reset = inner.reset
        self.format_observation = inner.format_observation
        self.close = inner.close

    def step(self, response_text: str) -> Any:
        """As the environment answers the call."""
        return self._inner.step(self._calls[zlib.crc32(response_text.encode()) % len(self._calls)])


def scoring(*, sample: EnvSample, args: Mapping[str, Any]) -> Heard:
    """geo3k_tool; a turn is a right answer, a wrong one, or a broken call."""
    calls = (call("calc_score", answer=sample.answer), call("calc_score", answer="no such colour"), f"{OPEN}{{{CLOSE}")
    return Heard(geo3k_tool.build_env(sample=sample, args=args), calls)


def showing(*, sample: EnvSample, args: Mapping[str, Any]) -> Heard:
    """crop_zoom; a turn asks for one of two parts, or for none that there is."""
    calls = (
        call("crop_zoom", bbox=[0, 0, 500, 500]),
        call("crop_zoom", bbox=[250, 250, 1000, 900]),
        call("crop_zoom", bbox=[500, 0, 0, 500]),
    )
    return Heard(crop_zoom.build_env(sample=sample, args=args), calls)
