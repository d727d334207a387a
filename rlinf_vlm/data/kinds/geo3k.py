r"""Problems with pictures whose answer is graded, in the layout of geometry3k.

    {"problem": "<image>Find $x$.", "answer": "5\sqrt{3}", "images": [{"bytes": ..}]}
    -> user: <image> "Find $x$."      assistant: "Answer: \boxed{5\sqrt{3}}"      gold answer: "5\sqrt{3}"

Supervised fine-tuning learns the assistant's turn; reinforcement learning asks ``Conversation.prompt`` and grades what
comes by ``Conversation.answer``. Images are bytes (hiyouga/geometry3k), paths or data URLs (geo3k_imgurl), one or a
list; without a placeholder in the problem they come first. Does not parse the answer: that is the grader's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.cells import image_cells, place_images, put_first, solved_cell, text_cell
from rlinf_vlm.data.kinds.turns import ask, boxed, refuse
from rlinf_vlm.types import Conversation


class Geo3k:
    """The kind ``geo3k``."""

    def __init__(self, options: KindOptions) -> None:
        """Raises UserError when a column is set that the kind does not read."""
        refuse(options, "geo3k", "choice_key", "messages_key", "solution_key")
        self._options = options

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(config key, column) of every column that is read."""
        return (
            ("data.prompt_key", self._options.prompt_key),
            ("data.answer_key", self._options.answer_key),
            *(("data.image_keys", column) for column in self._options.image_keys),
        )

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row. Raises RowError when the row cannot be used."""
        problem = text_cell(row, self._options.prompt_key)
        answer = solved_cell(row, self._options.answer_key)
        images = image_cells(row, self._options.image_keys)
        parts = put_first(place_images(problem), len(images))
        return Conversation(
            messages=ask(parts, target_text(answer), self._options),
            images=images,
            question="".join(part for part in parts if isinstance(part, str)).strip(),
            answer=answer,
        )


def target_text(answer: str) -> str:
    r"""What the assistant says: ``5`` gives ``Answer: \boxed{5}``."""
    return f"Answer: {boxed(answer)}"
