"""Rewards that a random model can earn, for runs in tests."""

from __future__ import annotations

import math
import os
import signal
import time

from rlinf_vlm.rewards.protocol import RewardInput, Score


class LetterShare:
    """The share of one letter among an answer's characters: 0 to 1, nearly never equal in a group."""

    def __init__(self, letter: str = "e") -> None:
        self._letter = letter

    def __call__(self, item: RewardInput) -> Score:
        share = item.prediction.count(self._letter) / max(1, len(item.prediction))
        return Score(value=share, parts={"share": share})


class Troubled:
    """Fails on half of the answers, in a way that their letters choose: raises, gives no number, ends its process,
    hangs. What remains is judged as ``LetterShare`` judges it."""

    def __init__(self) -> None:
        self._share = LetterShare()

    def __call__(self, item: RewardInput) -> Score:
        kind = sum(map(ord, item.prediction + item.answer)) % 8
        if kind == 0:
            raise RuntimeError("no judgement\nin two lines")
        if kind == 1:
            return Score(value=math.nan)
        if kind == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == 3:
            time.sleep(1000)
        return self._share(item)
