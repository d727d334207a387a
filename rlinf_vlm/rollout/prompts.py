"""Rows become what an engine is asked: ids with one token an image, and the decoded pictures.

    row --RowReader.prompt--> Sample --PromptReader--> RowPrompt: Prompt(ids as the engine takes them, ids as it must
                                                       see them), and the conversation that they render

The engine puts an image's tokens in the place of its one token by itself; ``Prompt.seen_ids`` says what has to come
out, by the trainer's own rendering. Pictures are decoded as for the trainer. Knows no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlinf_vlm.data.images import load_image
from rlinf_vlm.data.reading import BadRow, Kind, RowReader, Rows
from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.types import Conversation

MARK_NAMES = (
    "image_token",
    "video_token",
    "vision_start_token",
    "vision_end_token",
    "start_image_token",
    "end_image_token",
)
"""Where processors name the tokens that stand for pictures and around them."""
KNOWN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Qwen2-VL's and Qwen2.5-VL's processors do not name all of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt as an engine is given it.

    token_ids: one image token for each image; images: decoded, RGB, in order; seen_ids: with image tokens expanded.
    """

    token_ids: tuple[int, ...]
    images: tuple[Any, ...]
    seen_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrompt:
    """A row's prompt, and the row as its dataset kind reads it."""

    prompt: Prompt
    conversation: Conversation


class PromptReader:
    """Row number -> RowPrompt, or BadRow that names file and row."""

    def __init__(self, rows: Rows, kind: Kind, renderer: Renderer) -> None:
        self._rows = rows
        self._renderer = renderer
        self._reader = RowReader(rows=rows, kind=kind, renderer=renderer)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __getitem__(self, row: int) -> RowPrompt | BadRow:
        """The prompt of ``row``."""
        sample = self._reader.prompt(row)
        if isinstance(sample, BadRow):
            return sample
        conversation = sample.conversation
        assert conversation is not None, "a rendered prompt keeps its conversation"
        base = self._rows.folder_of(row)
        prompt = Prompt(
            token_ids=tuple(self._renderer.prompt_ids(conversation)),
            images=tuple(load_image(ref, base) for ref in conversation.images),
            seen_ids=tuple(sample.input_ids.tolist()),
        )
        return RowPrompt(prompt=prompt, conversation=conversation)


def banned_ids(processor: Any) -> tuple[int, ...]:
    """The ids that no answer may hold, ascending: those that stand for pictures, and that stand around them.

    A sampled image token would be one without an image. Engine and trainer both leave them out of the distribution.
    """
    tokenizer = processor.tokenizer
    named = [getattr(processor, name, None) for name in MARK_NAMES]
    found = {tokenizer.convert_tokens_to_ids(mark) for mark in (*named, *KNOWN_MARKS) if isinstance(mark, str)}
    return tuple(sorted(found - {None, tokenizer.unk_token_id}))
