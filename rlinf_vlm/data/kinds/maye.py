r"""Problems with pictures and worked solutions, in the layout of MAYE's JSON lines.

    {"question": "<image>What is $BC$?", "answer": "20", "solution": "\boxed{20}", "id": "geometry3k_2948",
     "image": "geometry3k_images/geometry3k_2948.png"}
    -> user: <image> "What is $BC$?"      assistant: the solution      gold answer: "20"

The solution is what supervised fine-tuning learns, worked or just boxed; a row without one gives the boxed answer.
Image paths count from the file's folder. Reinforcement learning reads ``Conversation.prompt`` and ``.answer``, never
the solution. Does not check that the solution ends in the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.cells import cell, image_cells, place_images, put_first, solved_cell, text_cell
from rlinf_vlm.data.kinds.turns import ask, boxed, refuse
from rlinf_vlm.types import Conversation


class Maye:
    """The kind ``maye``."""

    def __init__(self, options: KindOptions) -> None:
        """Raises UserError when a column is set that the kind does not read."""
        refuse(options, "maye", "choice_key", "messages_key")
        self._options = options

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(config key, column) of every column that is read."""
        options = self._options
        solution = () if options.solution_key is None else (("data.solution_key", options.solution_key),)
        return (
            ("data.prompt_key", options.prompt_key),
            ("data.answer_key", options.answer_key),
            *solution,
            *(("data.image_keys", column) for column in options.image_keys),
        )

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row. Raises RowError when the row cannot be used."""
        options = self._options
        question = text_cell(row, options.prompt_key)
        answer = solved_cell(row, options.answer_key)
        images = image_cells(row, options.image_keys)
        parts = put_first(place_images(question), len(images))
        return Conversation(
            messages=ask(parts, self._solution(row) or boxed(answer), options),
            images=images,
            question="".join(part for part in parts if isinstance(part, str)).strip(),
            answer=answer,
        )

    def _solution(self, row: Mapping[str, Any]) -> str | None:
        """None where the row has none."""
        column = self._options.solution_key
        if column is None or cell(row, column) in (None, ""):
            return None
        return text_cell(row, column)
