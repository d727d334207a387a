"""The environment of single-turn reinforcement learning: the first answer ends the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.types import UserError


class SingleTurn:
    """Shows nothing, and is done after one step."""

    def reset(self) -> tuple[None, dict[str, Any]]:
        """Nothing is added to the prompt."""
        return None, {}

    def step(self, response_text: str) -> tuple[None, bool, dict[str, Any]]:
        """Done."""
        return None, True, {}

    def format_observation(self, observation: Any) -> dict[str, Any]:
        """Never asked for. Raises ValueError: there is nothing to show."""
        raise ValueError("a single turn has no observations")

    def close(self) -> None:
        """Holds nothing."""


def build_env(*, sample: EnvSample, args: Mapping[str, Any]) -> SingleTurn:
    """Takes no args."""
    if args:
        raise UserError(f"env.options: single_turn takes none, but has {', '.join(sorted(args))}; remove them")
    return SingleTurn()
