"""The reward of geometry3k: ``math`` with a tolerance for answers that the data rounds.

A fifth of geometry3k's gold answers are rounded decimals (8/15 stands there as 0.53), which an exact answer misses.
The tolerance is relative, unlike slime's absolute 0.05: 0.05 of a length of 0.3 would be a sixth of it.
"""

from __future__ import annotations

from rlinf_vlm.rewards.math import judge
from rlinf_vlm.rewards.protocol import RewardInput, Score


class Geo3kReward:
    """The reward ``geo3k``: 1 within ``tolerance`` of a gold number, else as ``math``."""

    def __init__(self, *, tolerance: float = 0.0) -> None:
        """tolerance: relative to the gold number, 0.0 (the same as ``math``) or e.g. 0.05. Raises ValueError unless
        0 <= tolerance < 1."""
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance={tolerance} is not between 0 and 1")
        self._tolerance = tolerance

    def __call__(self, item: RewardInput) -> Score:
        """1 or 0."""
        return judge(item.prediction, item.answer, tolerance=self._tolerance)
