r"""Chats, and plain question/answer columns, with images at ``<image>`` placeholders.

    messages_key set:   [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cup."}]
    messages_key null:  prompt_key and answer_key hold one question and its answer

Content is a text, or a list of {"type": "text", "text"} and {"type": "image", "image"?}, or that list as JSON; messages
may say from/value (human, gpt) for role/content. An image part with an image of its own uses that; every other image
part or placeholder takes the next image of the image columns. With no place for an image at all, they come first in the
first user turn; any other disagreement between places and images is a RowError, as is a chat that does not end with the
assistant. Does not render, tokenise or decode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.cells import (
    answer_cell,
    cell,
    check_places,
    choice_texts,
    find_choice,
    image_cells,
    place_images,
    put_first,
    shown,
    text_cell,
)
from rlinf_vlm.data.kinds.turns import ask, dress, refuse
from rlinf_vlm.types import Conversation, ImagePart, Message, RowError, UserError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
"""What data call a role -> what chat templates call it."""

Piece = str | ImagePart | tuple[ImagePart, Any]
"""Text, the place of an image column's next image, or a place with its own image."""


class Messages:
    """The kind ``messages``."""

    def __init__(self, options: KindOptions) -> None:
        """Raises UserError when the options contradict each other."""
        if options.messages_key is not None and options.choice_key is not None:
            raise UserError(
                f"data.choice_key={options.choice_key!r} is not read with data.messages_key={options.messages_key!r}; "
                "set one of them to null"
            )
        refuse(options, "messages", "solution_key")
        self._options = options

    def required_columns(self) -> tuple[tuple[str, str], ...]:
        """(config key, column) of every column that is read."""
        options = self._options
        images = tuple(("data.image_keys", column) for column in options.image_keys)
        if options.messages_key is not None:
            return (("data.messages_key", options.messages_key), *images)
        choices = () if options.choice_key is None else (("data.choice_key", options.choice_key),)
        return (("data.prompt_key", options.prompt_key), *choices, ("data.answer_key", options.answer_key), *images)

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row. Raises RowError when the row cannot be used."""
        images = image_cells(row, self._options.image_keys)
        if self._options.messages_key is None:
            return self._question(row, images)
        value = cell(row, self._options.messages_key)
        return self._chat(list(_turns(value, self._options.messages_key)), images)

    def _question(self, row: Mapping[str, Any], images: tuple[Any, ...]) -> Conversation:
        options = self._options
        user = put_first(place_images(text_cell(row, options.prompt_key)), len(images))
        answer = answer_cell(row, options.answer_key)
        choices: tuple[str, ...] = ()
        index = None
        if options.choice_key is not None and cell(row, options.choice_key) is not None:
            choices = choice_texts(row[options.choice_key], options.choice_key)
            index = find_choice(answer, choices)
            answer = choices[index]
        return Conversation(
            messages=ask(user, answer, options),
            images=images,
            question="".join(part for part in user if isinstance(part, str)).strip(),
            answer=answer,
            choices=choices,
            choice_index=index,
        )

    def _chat(self, turns: list[tuple[str, list[Piece]]], images: tuple[Any, ...]) -> Conversation:
        roles = [role for role, _ in turns]
        if not roles or roles[-1] != "assistant":
            raise RowError(f"the last message is {shown(roles[-1:])}, not the assistant's; roles: {shown(roles)}")
        if "user" not in roles:
            raise RowError(f"no message is the user's; roles: {shown(roles)}")
        places = [piece for _, pieces in turns for piece in pieces if not isinstance(piece, str)]
        if not places:
            turns[roles.index("user")][1][:0] = [ImagePart()] * len(images)
            references = images
        else:
            references = _fill(places, images)
        messages = tuple(Message(role=role, parts=_parts(pieces)) for role, pieces in turns)
        last_user = len(roles) - 1 - roles[::-1].index("user")
        return Conversation(
            messages=dress(messages, self._options),
            images=references,
            question=_text(messages[last_user]).strip(),
            answer=_text(messages[-1]),
        )


def _turns(value: Any, column: str) -> Iterator[tuple[str, list[Piece]]]:
    """Role and pieces of every message."""
    if isinstance(value, str):
        value = _json_list(value)
    if not isinstance(value, list | tuple | np.ndarray):
        raise RowError(f"column {column!r} holds no list of messages")
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowError(f"message {number} is {shown(message)}, not an object")
        name = message.get("role") or message.get("from")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise RowError(f"message {number} has the role {shown(name)}; known: {', '.join(ROLES)}")
        content = message.get("content")
        pieces = list(_pieces(message.get("value") if content is None else content, number))
        if role != "user" and role != "tool" and not all(isinstance(piece, str) for piece in pieces):
            raise RowError(f"message {number}, the {role}'s, holds an image; images belong to the user")
        yield role, pieces


def _pieces(content: Any, number: int) -> Iterator[Piece]:
    """The pieces of one message's content."""
    if isinstance(content, str):
        parts = _json_list(content)
        if (
            not parts
            or not isinstance(parts, list)
            or not all(isinstance(part, dict) and "type" in part for part in parts)
        ):
            yield from place_images(content)
            return
        content = parts
    if not isinstance(content, list | tuple | np.ndarray):
        raise RowError(f"message {number} has the content {shown(content)}, not a text or a list of parts")
    for part in content:
        yield from _piece(part, number)


def _piece(part: Any, number: int) -> Iterator[Piece]:
    if isinstance(part, str):
        yield from place_images(part)
        return
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        yield from place_images(part["text"])
    elif kind == "image":
        own = part.get("image")
        yield ImagePart() if own is None else (ImagePart(), own)
    else:
        raise RowError(f"message {number} holds the part {shown(part)}; known are text and image parts")


def _fill(places: Sequence[Piece], images: Sequence[Any]) -> tuple[Any, ...]:
    """The image of every place: its own, or the next one of the columns."""
    check_places(sum(isinstance(place, ImagePart) for place in places), len(images))
    columns = iter(images)
    return tuple(place[1] if isinstance(place, tuple) else next(columns) for place in places)


def _parts(pieces: Sequence[Piece]) -> tuple[str | ImagePart, ...]:
    """The parts of a message; an empty message is an empty text."""
    return tuple(piece[0] if isinstance(piece, tuple) else piece for piece in pieces) or ("",)


def _text(message: Message) -> str:
    return "".join(part for part in message.parts if isinstance(part, str))


def _json_list(text: str) -> Any:
    """The list that a text spells in JSON; None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None
