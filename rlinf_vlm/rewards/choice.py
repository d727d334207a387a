r"""The reward for multiple-choice answers: 1 when the letter that is chosen is the gold one, else 0.

Gold answers are a letter ("B", "(b)"), a letter and its text ("B. a pan") or a text alone, whose letter the row's
metadata tells (``choices``, a list of texts). What is chosen is read from the box, behind "answer is", or from a short
answer: "\boxed{B}", "The answer is (B).", "B. a pan", "B". A text without a letter is compared with the gold text.
Not here: prose that mentions a letter ("A pan" chooses nothing), and more than one choice ("A or B" is none).
"""

from __future__ import annotations

import re

from rlinf_vlm.rewards.extraction import extract_answer, find_boxes
from rlinf_vlm.rewards.latex import clean
from rlinf_vlm.rewards.protocol import RewardInput, Score

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LETTER = re.compile(
    r"(?:(?:option|choice)\s+)?[(\[]?\s*([A-Za-z])\s*(?:[)\]]|[.:]|$)\s*(.*)", re.IGNORECASE | re.DOTALL
)
MAX_LENGTH = 2000
"""Characters of an answer that are read."""


class ChoiceReward:
    """The reward ``choice``: no options."""

    def __call__(self, item: RewardInput) -> Score:
        """1 or 0. Raises ValueError when the gold answer is no choice."""
        choices = [str(choice) for choice in item.metadata.get("choices") or ()]
        letter, text = _read(item.answer, choices)
        if not letter and not text:
            raise ValueError(f"the gold answer {item.answer!r} names no choice")
        found = extract_answer(item.prediction) or ""
        if not found and not find_boxes(item.prediction)[1]:
            found = item.prediction.strip().split("\n")[-1]
        given, given_text = _read(found[:MAX_LENGTH], choices)
        right = given == letter if given and letter else bool(text) and given_text == text
        return Score(value=float(right), detail=found[:200] or "no answer found")


def _read(answer: str, choices: list[str]) -> tuple[str, str]:
    """(letter, text without case and layout) of an answer; "" for what it does not have."""
    stripped = clean(answer)
    match = LETTER.fullmatch(stripped)
    letter, rest = (match.group(1).upper(), match.group(2)) if match is not None else ("", stripped)
    if re.match(r"(?:and|or|,)\b", rest, re.IGNORECASE):
        return "", ""
    texts = [_plain(choice) for choice in choices]
    text = _plain(rest)
    if not letter and text in texts:
        letter = LETTERS[texts.index(text)] if texts.index(text) < len(LETTERS) else ""
    if letter and not text and LETTERS.index(letter) < len(texts):
        text = texts[LETTERS.index(letter)]
    return letter, text


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", clean(text).casefold()).strip(" .{}")
