"""A chat message of an environment becomes what can be rendered, with its pictures as PNG files' contents.

    {"role", "content"} --read_message--> ShownMessage(Message, PNG of each image, text)

Pictures are encoded once, without loss, and read back from that by engine and trainer alike, so that both see the same
pixels. Raises RowError that says what is wrong with a message. Not here: ids, and limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from rlinf_vlm.data.images import image_size, load_image
from rlinf_vlm.types import ImagePart, Message, RowError

ROLES = ("user", "tool", "system")
MOST_PIXELS = 1 << 26
"""Of a picture, 8192 x 8192: to read a larger one takes engine and trainer seconds each; models are shown less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownMessage:
    """message: as it is rendered; images: contents of PNG files, in order; text: its pieces of text, joined."""

    message: Message
    images: tuple[bytes, ...]
    text: str


def read_message(found: Any) -> ShownMessage:
    """The message that ``format_observation`` gave. Raises RowError."""
    if not isinstance(found, Mapping) or "content" not in found:
        raise RowError(f"format_observation gave a {type(found).__name__}, not a message with 'role' and 'content'")
    role, content = found.get("role", "user"), found["content"]
    if role not in ROLES:
        raise RowError(f"format_observation gave the role {role!r}, not one of {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise RowError(f"format_observation gave as content a {type(content).__name__}, not a text or a list of parts")
    parts: list[str | ImagePart] = []
    images: list[bytes] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "image" and part.get("image") is not None:
            parts.append(ImagePart())
            images.append(as_png(part["image"]))
        else:
            raise RowError(
                "format_observation gave a part that is neither {'type': 'text', 'text': ..} nor {'type': 'image', "
                "'image': ..}"
            )
    text = "".join(part for part in parts if isinstance(part, str))
    return ShownMessage(message=Message(role=role, parts=tuple(parts)), images=tuple(images), text=text)


def as_png(ref: Any) -> bytes:
    """The content of a PNG file of an image, see ``load_image``. Raises RowError where it cannot be read, has no pixels
    or too many."""
    width, height = image_size(ref)
    if not 0 < width * height <= MOST_PIXELS:
        raise RowError(f"a picture of {width} x {height} pixels has none, or more than {MOST_PIXELS:,}")
    stream = BytesIO()
    load_image(ref).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
