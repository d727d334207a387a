"""Rewards that a random model can earn, for runs in tests."""

from __future__ import annotations

from rlinf_vlm.rewards.protocol import RewardInput, Score


class LetterShare:
    """The share of one letter among an answer's characters: 0 to 1, nearly never equal in a group."""

    def __init__(self, letter: str = "e") -> None:
        self._letter = letter

    def __call__(self, item: RewardInput) -> Score:
        share = item.prediction.count(self._letter) / max(1, len(item.prediction))
        return Score(value=share, parts={"share": share})
