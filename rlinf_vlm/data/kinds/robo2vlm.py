r"""Choice questions about images, as Robo2VLM-1 has them: question, choices, right answer, image.

    {"question": "What is held?", "choices": "['a cup', 'a pan']", "correct_answer": 1, "image": {...}}
    -> user: <image> "What is held?\nChoices:\nA. a cup\nB. a pan\n"      assistant: "B. a pan"

The texts are those of RLinf's dataset of the same name, to the last newline, so that models trained by either can be
evaluated by either. The answer may be an index, a letter or the choice's text; one that names no choice is a RowError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.cells import (
    LETTERS,
    cell,
    choice_texts,
    find_choice,
    image_cells,
    place_images,
    put_first,
    text_cell,
)
from rlinf_vlm.data.kinds.turns import ask, refuse
from rlinf_vlm.types import Conversation, RowError, UserError


class Robo2VLMSFT:
    """The kind ``robo2vlmsft``."""

    def __init__(self, options: KindOptions) -> None:
        """Raises UserError when the options do not fit the kind."""
        if options.choice_key is None:
            raise UserError("data.choice_key=null, but dataset_name=robo2vlmsft asks choice questions; name the column")
        if options.messages_key is not None:
            raise UserError(
                f"data.messages_key={options.messages_key!r} is not read by dataset_name=robo2vlmsft; set it to null, "
                "or set data.dataset_name=messages"
            )
        refuse(options, "robo2vlmsft", "solution_key")
        self._options = options
        self._choice_key = options.choice_key

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(config key, column) of every column that is read."""
        return (
            ("data.prompt_key", self._options.prompt_key),
            ("data.choice_key", self._choice_key),
            ("data.answer_key", self._options.answer_key),
            *(("data.image_keys", column) for column in self._options.image_keys),
        )

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row. Raises RowError when the row cannot be used."""
        question = text_cell(row, self._options.prompt_key)
        choices = choice_texts(cell(row, self._choice_key), self._choice_key)
        if len(choices) > len(LETTERS):
            raise RowError(
                f"column {self._choice_key!r} holds {len(choices)} choices, more than there are letters (26)"
            )
        index = find_choice(cell(row, self._options.answer_key), choices)
        targets = tuple(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        images = image_cells(row, self._options.image_keys)
        user = put_first(place_images(prompt_text(question, targets)), len(images))
        return Conversation(
            messages=ask(user, targets[index], self._options),
            images=images,
            question=question,
            answer=targets[index],
            choices=targets,
            choice_index=index,
        )


def prompt_text(question: str, targets: tuple[str, ...]) -> str:
    """What the user asks: the question, then every choice on a line of its own, the last one ended too."""
    return f"{question}\nChoices:\n" + "".join(f"{target}\n" for target in targets)
