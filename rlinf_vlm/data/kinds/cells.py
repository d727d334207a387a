"""Single cells of a row: a text, a list of choices, an answer that names a choice, images, text with placeholders.

Pure functions from what a file holds to plain values. What is missing, ambiguous or of another type raises RowError
with the column and the value; nothing is guessed. Does not know configs or conversations.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlinf_vlm.data.images import image_list
from rlinf_vlm.types import ImagePart, RowError

IMAGE_PLACEHOLDER = "<image>"
LETTERS = string.ascii_uppercase
LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
"""A letter by itself: B, b, B., B), (B)."""
SHOWN = 200


def cell(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column that must be there, null allowed. Raises RowError."""
    if column not in row:
        raise RowError(f"no column {column!r} (the row has: {', '.join(map(str, row))})")
    return row[column]


def text_cell(row: Mapping[str, Any], column: str) -> str:
    """A text that is not blank. Raises RowError."""
    value = cell(row, column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"column {column!r} holds {shown(value)}, not a text")
    return value


def answer_cell(row: Mapping[str, Any], column: str) -> str:
    """An answer as text; a number is written as Python writes it. Raises RowError for null or a list."""
    value = cell(row, column)
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str | int | float):
        raise RowError(f"column {column!r} holds {shown(value)}, not a text or a number")
    return str(value)


def solved_cell(row: Mapping[str, Any], column: str) -> str:
    """An answer that a grader compares with: as ``answer_cell``, without outer blanks. Raises RowError where none is
    left."""
    answer = answer_cell(row, column).strip()
    if not answer:
        raise RowError(f"column {column!r} holds {shown(row[column])}, which is no answer to compare with")
    return answer


def image_cells(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[Any, ...]:
    """All images of ``columns``, in order, undecoded; a null cell holds none."""
    return tuple(image for column in columns for image in image_list(cell(row, column)))


def choice_texts(value: Any, column: str) -> tuple[str, ...]:
    """The choices of a list, or of a text that spells a Python or JSON list. Raises RowError for fewer than two."""
    items = _parse_list(value) if isinstance(value, str) else value
    items = items.tolist() if isinstance(items, np.ndarray) else items
    if not isinstance(items, list | tuple):
        raise RowError(f"column {column!r} holds {shown(value)}, not a list of choices")
    if len(items) < 2:
        raise RowError(f"column {column!r} holds {len(items)} choice(s) ({shown(value)}); a choice needs two")
    for item in items:
        if not isinstance(item, str | int | float) or (isinstance(item, str) and not item.strip()):
            raise RowError(f"column {column!r} holds the choice {shown(item)}, not a text")
    return tuple(str(item) for item in items)


def find_choice(answer: Any, choices: Sequence[str]) -> int:
    """Which of ``choices`` an answer names.

    An int is an index. A text is a choice's text (exact, else regardless of case and outer blanks), a letter, a letter
    with its text ("B. a pan"), or an index in digits. Raises RowError when it names none, or could name two.
    """
    answer = answer.item() if isinstance(answer, np.generic) else answer
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
        raise RowError(f"answer index {answer} is outside 0..{len(choices) - 1}, the indices of {shown(choices)}")
    if not isinstance(answer, str):
        raise RowError(f"answer {shown(answer)} is not an index, a letter or a text; choices: {shown(choices)}")
    meanings = _meanings(answer, choices)
    if len(meanings) == 1:
        return meanings.pop()
    problem = f"could be choices {sorted(meanings)} (counted from 0)" if meanings else "is none of the choices"
    raise RowError(f"answer {shown(answer)} {problem}: {shown(choices)}")


def place_images(text: str) -> tuple[str | ImagePart, ...]:
    """The text cut at its ``<image>`` placeholders, each an ImagePart; empty pieces are left out."""
    parts: list[str | ImagePart] = []
    for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        parts += [ImagePart()] * (index > 0)
        parts += [piece] * bool(piece)
    return tuple(parts)


def put_first(parts: tuple[str | ImagePart, ...], images: int) -> tuple[str | ImagePart, ...]:
    """``parts``, with ``images`` image places before them where they have none. Raises RowError for another number."""
    places = sum(isinstance(part, ImagePart) for part in parts)
    if places == 0:
        return (*[ImagePart()] * images, *parts)
    check_places(places, images)
    return parts


def check_places(places: int, images: int) -> None:
    """Raises RowError unless every image has its place."""
    if places != images:
        raise RowError(f"the text has {places} {IMAGE_PLACEHOLDER} placeholders but the row has {images} images")


def shown(value: Any) -> str:
    """A value as an error shows it, on one line, shortened."""
    if value is None:
        return "null"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _parse_list(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _meanings(answer: str, choices: Sequence[str]) -> set[int]:
    """Indices of all choices that the answer may name: by text, by letter, else by digits."""
    folded = answer.strip().casefold()
    text = {index for index, choice in enumerate(choices) if choice == answer}
    text = text or {index for index, choice in enumerate(choices) if choice.strip().casefold() == folded}
    letter = _by_letter(answer, choices)
    if letter and text:
        # "A" may be the first choice and the text of another one; the row does not say which is meant.
        return letter if letter <= text else letter | text
    return letter or text or _by_digits(answer.strip(), choices)


def _by_letter(answer: str, choices: Sequence[str]) -> set[int]:
    """The choice of a letter, or of a letter with the choice's text."""
    match = LETTER.fullmatch(answer.strip())
    if match:
        index = LETTERS.index(match[1].upper())
        return {index} if index < len(choices) else set()
    spelled = answer.strip().casefold()
    labelled = enumerate(zip(LETTERS, choices, strict=False))
    return {index for index, (letter, choice) in labelled if spelled == f"{letter}. {choice}".strip().casefold()}


def _by_digits(answer: str, choices: Sequence[str]) -> set[int]:
    """The choice of an index in digits; none where choices are numbers, for then a missing number is a wrong answer."""
    if not answer.isdecimal() or any(_is_number(choice) for choice in choices):
        return set()
    return {int(answer)} & set(range(len(choices)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
