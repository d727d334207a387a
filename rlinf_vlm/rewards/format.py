r"""The reward for the form of an answer: 1 when it is written as was asked for, else 0. The content is not looked at.

``boxed``: exactly one outermost ``\boxed{}`` that closes, with something in it. ``think``: begins with ``<think>``,
which closes once, and something follows. ``think_boxed``: both, the box behind ``</think>``. ``<think>`` may stand in
the prompt already: then it need not be repeated. Anything else is a regular expression for the whole text (DeepSeek-R1,
arXiv:2501.12948, has a format reward of this kind).
Invariants: an answer that was cut off (finish_reason "length") never has the form; linear in the text's length, but for
regular expressions of the user's, for which the pool has a time limit.
"""

from __future__ import annotations

import re

from rlinf_vlm.rewards.extraction import find_boxes
from rlinf_vlm.rewards.protocol import RewardInput, Score

FORMS = ("boxed", "think", "think_boxed")


class FormatReward:
    """The reward ``format``."""

    def __init__(self, *, form: str = "boxed") -> None:
        """form: one of ``FORMS``, or a regular expression. Raises ValueError for one that does not compile."""
        self._form = form
        self._pattern: re.Pattern[str] | None = None
        if form not in FORMS:
            try:
                self._pattern = re.compile(form, re.DOTALL)
            except re.error as error:
                raise ValueError(f"form={form!r} is none of {', '.join(FORMS)} and no pattern: {error}") from error

    def __call__(self, item: RewardInput) -> Score:
        """1 or 0."""
        if item.finish_reason == "length":
            return Score(value=0.0, detail="cut off")
        text = item.prediction.strip()
        if self._pattern is not None:
            return Score(value=float(self._pattern.fullmatch(text) is not None))
        if self._form == "boxed":
            return Score(value=float(_one_box(text)))
        thought, mark, rest = text.partition("</think>")
        told = bool(mark and rest.strip() and thought.removeprefix("<think>").strip())
        told = told and "<think>" not in thought[1:] and "<think>" not in rest and "</think>" not in rest
        return Score(value=float(told and (self._form == "think" or _one_box(rest))))


def _one_box(text: str) -> bool:
    boxes, cut_off = find_boxes(text)
    return len(boxes) == 1 and bool(boxes[0]) and not cut_off
