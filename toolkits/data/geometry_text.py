r"""Problems whose values stand in the text: the picture says by letters which side or angle is which.

    labels 12 and x, "Find $x$ in the circle."  ->  labels a and x, "$a=12$. Find $x$."

A small model learns to read digits in a picture late and to copy them from the text early; what is left to see is the
figure itself. Names of figures are taken out of the question, so that the text does not tell the kind. Does not draw.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from toolkits.data.geometry_figure import AngleLabel, LengthLabel, Problem

Label = TypeVar("Label", LengthLabel, AngleLabel)
LETTERS = "abcd"
COMMON = {"length": range(5, 26), "angle": range(35, 61), "area": range(5, 26), "perimeter": range(2, 31)}
"""What is asked -> where a single given number lies: in a range that all kinds have, or it would tell the kind."""
QUESTIONS = {"length": "Find $x$.", "angle": "Find $x$.", "area": "Find the area.", "perimeter": "Find the perimeter."}
"""What is asked -> the question without the figure's name."""


def fits(problem: Problem) -> bool:
    """Whether the question names no points: then ``x`` or the whole figure is asked."""
    return "{" not in problem.question


def is_common(problem: Problem) -> bool:
    """Whether the given number, if there is but one, could be one of any kind."""
    return len(_given(problem)) > 1 or problem.numbers[0] in COMMON[problem.asked.what]


def with_letters(problem: Problem, rng: random.Random) -> Problem:
    """``problem`` with letters in place of the given numbers; which number gets which letter is by chance.

    Labels that are the same in every problem of the kind (the 60 of a half equilateral triangle) stay.
    """
    letters = list(LETTERS[: len(_given(problem))])
    rng.shuffle(letters)
    given: dict[str, str] = {}
    left, waiting = list(problem.numbers), iter(letters)
    lengths = tuple(_lettered(problem.figure.lengths, left, waiting, given))
    angles = tuple(_lettered(problem.figure.angles, left, waiting, given))
    values = ", ".join(f"${letter}={given[letter]}$" for letter in sorted(given))
    return replace(
        problem,
        figure=replace(problem.figure, lengths=lengths, angles=angles),
        question=f"{values}. {QUESTIONS[problem.asked.what]}",
    )


def _given(problem: Problem) -> list[str]:
    """The labels that are given numbers."""
    left = list(problem.numbers)
    texts = [label.text for label in problem.figure.lengths] + [label.text for label in problem.figure.angles]
    return [text for text in texts if _takes(text, left)]


def _lettered(
    labels: tuple[Label, ...], left: list[int], letters: Iterator[str], given: dict[str, str]
) -> Iterator[Label]:
    for label in labels:
        if _takes(label.text, left):
            letter = next(letters)
            given[letter] = label.text
            yield replace(label, text=letter)
        else:
            yield label


def _takes(text: str, left: list[int]) -> bool:
    """Whether a label is one of the numbers that are ``left``, which then is taken from them."""
    if not text.isdecimal() or int(text) not in left:
        return False
    left.remove(int(text))
    return True
