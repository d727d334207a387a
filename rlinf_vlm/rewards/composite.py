"""A weighted sum of rewards, with what each gave kept.

    {"parts": {"math": {"weight": 0.9}, "form": {"name": "format", "weight": 0.1, "options": {"form": "think_boxed"}}}}

Invariants: ``parts`` of the score are the values before weighting, under the names given here (a composite inside is
"name/part"); a part that fails makes the whole a failure with its status: a sum without it would be another reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from rlinf_vlm.rewards import make_reward
from rlinf_vlm.rewards.protocol import OK, RewardInput, Score, score_one

KEYS = {"name", "weight", "options"}


class CompositeReward:
    """The reward ``composite``."""

    def __init__(self, *, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """parts: name -> weight (default 1.0), name of the reward (default: the part's name), options. Raises
        ValueError for no parts and unknown keys, UserError for a part that cannot be made."""
        if not parts:
            raise ValueError("parts is empty; name at least one reward")
        for name, part in parts.items():
            if set(part) - KEYS:
                raise ValueError(f"part {name!r} has {sorted(set(part) - KEYS)}; known: {', '.join(sorted(KEYS))}")
        self._weights = {name: float(part.get("weight", 1.0)) for name, part in parts.items()}
        self._rewards = {
            name: make_reward(str(part.get("name", name)), part.get("options")) for name, part in parts.items()
        }

    async def __call__(self, item: RewardInput) -> Score:
        """The weighted sum; async parts wait together."""
        found = await asyncio.gather(*(score_one(reward, item) for reward in self._rewards.values()))
        scores = dict(zip(self._rewards, found, strict=True))
        parts: dict[str, float] = {}
        for name, score in scores.items():
            parts[name] = score.value
            parts |= {f"{name}/{inner}": value for inner, value in score.parts.items()}
        bad = next(((name, score) for name, score in scores.items() if score.status != OK), None)
        detail = "; ".join(f"{name}: {score.detail}" for name, score in scores.items() if score.detail)
        if bad is not None:
            return Score(value=0.0, parts=parts, status=bad[1].status, detail=detail)
        total = sum(self._weights[name] * score.value for name, score in scores.items())
        return Score(value=total, parts=parts, detail=detail)
