"""A conversation becomes a sample: ids, labels, positions and processed images, from one rendering.

    Conversation -> chat template, once -> text -> tokenizer, once, with character offsets
                 -> image placeholders expanded by what the processor makes of each image
                 -> labels where the assistant speaks

What is supervised: the assistant's tokens and the token that ends its turn; nothing of the template before or after
them. Where a turn begins is where the template's own generation prompt ends, so at inference the model stands exactly
where it stood in training.

Invariants: the ids equal those of the Hugging Face processor on the same conversation; the number of image tokens of
an image is the number of features that its tensors give. The processor sees each image once (a small cache serves rows
that share an image). Does not read files, batch, or know a model family: positions come from a function that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from rlinf_vlm.data.image_processor import ImageProcessor, image_key
from rlinf_vlm.types import IGNORE_INDEX, Conversation, ImagePart, Message, ProcessedImage, RowError, Sample, UserError

PositionFn = Callable[[torch.Tensor, Sequence[ProcessedImage]], torch.Tensor]
"""(input_ids [L], images in order) -> position_ids [3, L]."""

PLAIN_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% if m.role == 'assistant' %}EOS{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""Used when data.apply_chat_template is false; IMAGE and EOS stand for the model's own marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """data.* settings that shape a sample; a limit of None does not limit."""

    chat_template: bool = True
    max_prompt_length: int | None = None
    max_length: int | None = None
    last_turn_only: bool = False
    """Supervise the last assistant turn alone: what an evaluation asks for."""
    max_length_name: str = "data.max_length"
    """The setting that max_length comes from, for the message."""
    blank_images: bool = False
    """Put an even grey picture of its size in the place of every image: same tokens and positions, nothing to see."""
    cache_bytes: int = 64 << 20
    """Memory for processed images of recent rows, in each loading process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSize:
    """What a sample will measure, known without decoding its images.

    tokens: of the sample, image tokens included; images: (key, image tokens) of each; a key of None: not to be told
    from others without decoding.
    """

    tokens: int
    images: tuple[tuple[bytes | None, int], ...]


class Renderer:
    """Renders conversations for one model. Picklable: it travels to the loading processes."""

    def __init__(self, processor: Any, positions: PositionFn, options: RenderOptions) -> None:
        self.tokenizer = processor.tokenizer
        self.processor = processor
        self.positions = positions
        self.options = options
        self.images = ImageProcessor(processor, options.cache_bytes, blank=options.blank_images)
        video_token = getattr(processor, "video_token", None)
        self._video_id = None if video_token is None else self.tokenizer.convert_tokens_to_ids(video_token)
        # Some tokenizers put a first token that their template leaves out; transformers then has it in the ids.
        bos = self.tokenizer.bos_token_id
        self._adds_bos = bos is not None and list(self.tokenizer("")["input_ids"][:1]) == [bos]
        self._special_ids = frozenset(self.tokenizer.all_special_ids) | {
            index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }

    def render(self, conversation: Conversation, *, row: int, base: Path | None = None) -> Sample:
        """The sample of ``conversation``. Raises RowError when the row cannot be used."""
        images = [self.images(ref, base) for ref in conversation.images]
        return self._sample(conversation, images, row=row, choice=conversation.choice_index)

    def render_prompt(self, conversation: Conversation, *, row: int, base: Path | None = None) -> Sample:
        """What the model is asked to continue, up to the place where it begins to speak; nothing in it is supervised.

        The ids are the first ``prompt_length`` of what ``render`` gives. Raises RowError when the row cannot be used.
        """
        images = [self.images(ref, base) for ref in conversation.images]
        ids = self.prompt_ids(conversation)
        return self._finish(conversation, images, self.expand(ids, [False] * len(ids), images), row=row)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """The ids of ``render_prompt`` with one image token for each image: what an engine is given with the images."""
        text, _ = self._with_bos(self.prompt_text(conversation.prompt), [])
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render_choices(self, conversation: Conversation, *, row: int, base: Path | None = None) -> list[Sample]:
        """One sample for every choice in place of the last answer, in the order of the choices; else just the one."""
        if not conversation.choices:
            return [self.render(conversation, row=row, base=base)]
        images = [self.images(ref, base) for ref in conversation.images]
        return [
            self._sample(with_answer(conversation, text), images, row=row, choice=index)
            for index, text in enumerate(conversation.choices)
        ]

    def measure(self, conversation: Conversation, *, base: Path | None = None) -> RowSize | None:
        """The size of what ``render`` gives, without decoding images; None where the processor cannot tell it.

        Raises RowError for most rows that ``render`` refuses, not for all: a picture that ends early has a header.
        """
        text, _ = self._with_bos(self.apply_template(conversation.messages, add_generation_prompt=False), [])
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self._check_placeholders(ids, conversation.images)
        images = []
        for ref in conversation.images:
            features = self.images.features(ref, base)
            if features is None:
                return None
            images.append((image_key(ref, base), features))
        tokens = len(ids) + sum(features - 1 for _, features in images)
        self._check_lengths(0, tokens)
        return RowSize(tokens=tokens, images=tuple(images))

    def check_template(self) -> int:
        """Renders a smallest conversation and returns the token that ends the assistant's turn in it.

        Raises UserError when the model's chat template cannot render one.
        """
        turns = (Message(role="user", parts=("a",)), Message(role="assistant", parts=("b",)))
        probe = Conversation(messages=turns, images=(), question="a", answer="b")
        try:
            text, spans = self._text_and_spans(probe.messages)
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            supervised = self._supervised(encoding["input_ids"], encoding["offset_mapping"], spans, text)
            return [token for token, own in zip(encoding["input_ids"], supervised, strict=True) if own][-1]
        except (RowError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"actor.model.model_path: its chat template does not render a question and an answer ({reason}); copy "
                "the model's chat_template.jinja into the folder, or set data.apply_chat_template=false"
            ) from error

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text that the model is asked to continue after ``messages``."""
        return self.apply_template(messages, add_generation_prompt=True)

    def _sample(
        self, conversation: Conversation, images: Sequence[ProcessedImage], *, row: int, choice: int | None
    ) -> Sample:
        text, spans = self._text_and_spans(conversation.messages)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        supervised = self._supervised(encoding["input_ids"], encoding["offset_mapping"], spans, text)
        expanded = self.expand(encoding["input_ids"], supervised, images)
        return self._finish(conversation, images, expanded, row=row, choice=choice)

    def _finish(
        self,
        conversation: Conversation,
        images: Sequence[ProcessedImage],
        expanded: tuple[list[int], list[int]],
        *,
        row: int,
        choice: int | None = None,
    ) -> Sample:
        """The sample of ``expanded`` ids and labels. Raises RowError where it is longer than it may be."""
        ids, labels = expanded
        prompt_length = next((place for place, label in enumerate(labels) if label != IGNORE_INDEX), len(ids))
        self._check_lengths(prompt_length, len(ids))
        input_ids = torch.tensor(ids, dtype=torch.int64)
        return Sample(
            row=row,
            input_ids=input_ids,
            labels=torch.tensor(labels, dtype=torch.int64),
            position_ids=self.positions(input_ids, images),
            images=tuple(images),
            prompt_length=prompt_length,
            conversation=conversation,
            choice=choice,
        )

    def apply_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of ``messages``. Raises RowError where the template refuses them."""
        try:
            text = self._render_template(messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise RowError(f"the chat template refuses the conversation: {' '.join(str(error).split())}") from error
        if not _is_unicode(text):
            raise RowError("the text holds half a character (a lone surrogate), which cannot be encoded")
        return text

    def _render_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        content = [{"role": message.role, "content": _template_parts(message)} for message in messages]
        if self.options.chat_template:
            return self.processor.apply_chat_template(
                content, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        image = f"{getattr(self.processor, 'vision_start_token', None) or ''}{self.images.token}"
        image += getattr(self.processor, "vision_end_token", None) or ""
        template = PLAIN_TEMPLATE.replace("IMAGE", image).replace("EOS", self.tokenizer.eos_token)
        return self.tokenizer.apply_chat_template(content, tokenize=False, chat_template=template)

    def _text_and_spans(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered conversation, and for each assistant turn the characters after its generation prompt."""
        text = self.apply_template(messages, add_generation_prompt=False)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            start = self.apply_template(messages[:index], add_generation_prompt=True)
            last = index + 1 == len(messages)
            end = text if last else self.apply_template(messages[: index + 1], add_generation_prompt=False)
            if not text.startswith(start) or not text.startswith(end):
                raise RowError(
                    f"the chat template changes earlier text once message {index} is added, "
                    "so what the assistant says cannot be told apart from the prompt"
                )
            spans.append((len(start), len(end)))
        text, spans = self._with_bos(text, spans)
        return text, spans[-1:] if self.options.last_turn_only else spans

    def _with_bos(self, text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """The text with the first token that the tokenizer would put there, and the spans moved."""
        bos = self.tokenizer.bos_token
        if not self._adds_bos or text.startswith(bos):
            return text, spans
        return bos + text, [(start + len(bos), end + len(bos)) for start, end in spans]

    def _supervised(
        self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str
    ) -> list[bool]:
        """For each token, whether it is the assistant's own or ends its turn."""
        supervised = [False] * len(ids)
        for start, end in spans:
            inside = [place for place, (first, last) in enumerate(offsets) if last > start and first < end]
            enders = [place for place in inside if ids[place] in self._special_ids]
            if not enders or text[offsets[enders[-1]][1] : end].strip():
                raise RowError(
                    f"the chat template ends the assistant's turn with {text[start:end][-20:]!r}, "
                    "which holds no special token that a model could learn to stop at"
                )
            for place in inside:
                supervised[place] = place <= enders[-1]
        return supervised

    def expand(
        self, ids: Sequence[int], supervised: Sequence[bool], images: Sequence[ProcessedImage]
    ) -> tuple[list[int], list[int]]:
        """Ids and labels with each image placeholder replaced by its image's tokens; RowError where numbers differ."""
        self._check_placeholders(ids, images)
        expanded: list[int] = []
        labels: list[int] = []
        remaining = iter(images)
        for token, own in zip(ids, supervised, strict=True):
            if token == self.images.token_id:
                image_ids = next(remaining).token_ids
                expanded += image_ids
                labels += [IGNORE_INDEX] * len(image_ids)
            else:
                expanded.append(token)
                labels.append(token if own else IGNORE_INDEX)
        return expanded, labels

    def _check_placeholders(self, ids: Sequence[int], images: Sequence[Any]) -> None:
        placeholders = ids.count(self.images.token_id)
        if placeholders != len(images):
            raise RowError(
                f"the rendered text has {placeholders} image placeholders {self.images.token!r} but the row has "
                f"{len(images)} images"
            )
        if self._video_id is not None and self._video_id in ids:
            raise RowError(f"the text holds the video placeholder {self.processor.video_token!r}; videos are not read")

    def _check_lengths(self, prompt_length: int, length: int) -> None:
        options = self.options
        if options.max_prompt_length is not None and prompt_length > options.max_prompt_length:
            raise RowError(
                f"the prompt has {prompt_length} tokens, more than data.max_prompt_length={options.max_prompt_length}"
            )
        if options.max_length is not None and length > options.max_length:
            raise RowError(f"the sample has {length} tokens, more than {options.max_length_name}={options.max_length}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_answer(conversation: Conversation, text: str) -> Conversation:
    """The conversation with ``text`` as its last message."""
    last = Message(role=conversation.messages[-1].role, parts=(text,))
    return Conversation(
        messages=(*conversation.messages[:-1], last),
        images=conversation.images,
        question=conversation.question,
        answer=conversation.answer,
        choices=conversation.choices,
        choice_index=conversation.choice_index,
    )


def _template_parts(message: Message) -> list[dict[str, str]]:
    """The message's parts as chat templates read them."""
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part} for part in message.parts
    ]
