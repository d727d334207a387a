"""What a policy is told between two of its turns becomes ids, without rendering again what was said before.

    message of an environment + its processed images -> chat template, in a stand-in conversation -> text behind the
    stand-in's answer -> tokenizer -> ``Told``: ids as the engine takes them, and with image tokens expanded

The ids of a conversation are only ever added to: what the policy generated stays as it is, and the template's text
behind a turn (the newline after its end-of-turn token, the observation's marks, the next generation prompt) is
tokenised by itself, from the end-of-turn token on, where no token reaches across.
Not here: the conversation so far, and limits of length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.types import Conversation, Message, ProcessedImage, RowError

STAND_IN = "what7was3said"
"""The answer in whose place the policy's own stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """token_ids: with one image token for each image, as an engine is given them; seen_ids: with all of its tokens."""

    token_ids: tuple[int, ...]
    seen_ids: tuple[int, ...]


class TurnRenderer:
    """Renders messages of environments for one model."""

    def __init__(self, renderer: Renderer) -> None:
        """Raises UserError when the chat template cannot render a question and an answer."""
        self._renderer = renderer
        self._end = renderer.check_template()
        self._end_text: str = renderer.tokenizer.convert_ids_to_tokens(self._end)

    def after_answer(self, message: Message, images: Sequence[ProcessedImage], *, last_id: int) -> Told:
        """What follows an answer that ended with the token ``last_id``: its end-of-turn token where it ended with
        another, the rest of the template's turn, ``message``, and the mark of the policy's next turn.

        Raises RowError where the template refuses the message, or its images are not those that its text shows.
        """
        before = (Message(role="user", parts=("a",)), Message(role="assistant", parts=(STAND_IN,)))
        text = self._renderer.apply_template((*before, message), add_generation_prompt=True)
        said = text.find(STAND_IN)
        end = text.find(self._end_text, said)
        if said < 0 or end < 0:
            raise RowError(f"the chat template drops an answer, or its end, once a {message.role!r} message follows")
        ids = self._ids(text[end:])
        if ids[0] != self._end:
            raise RowError(f"the tokenizer joins {self._end_text!r} with what follows it")
        return self._told(ids[1:] if last_id == self._end else ids, images)

    def after_prompt(
        self, conversation: Conversation, message: Message, images: Sequence[ProcessedImage]
    ) -> tuple[int, Told]:
        """(tokens at the prompt's end that give way, what takes their place): ``message`` follows the row's prompt, in
        front of the mark of the policy's first turn. Raises RowError as ``after_answer`` does."""
        prompt = conversation.prompt
        text = self._renderer.apply_template((*prompt, message), add_generation_prompt=True)
        kept = self._renderer.apply_template(prompt, add_generation_prompt=False)
        whole = self._renderer.prompt_text(prompt)
        if not text.startswith(kept) or not whole.startswith(kept):
            raise RowError(f"the chat template changes the prompt once a {message.role!r} message follows")
        return len(self._ids(whole[len(kept) :])), self._told(self._ids(text[len(kept) :]), images)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _told(self, ids: Sequence[int], images: Sequence[ProcessedImage]) -> Told:
        seen, _ = self._renderer.expand(ids, [False] * len(ids), images)
        return Told(token_ids=tuple(ids), seen_ids=tuple(seen))
