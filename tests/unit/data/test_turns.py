"""What is told between turns: with it, ids are those of the whole conversation rendered at once."""

from __future__ import annotations

import pytest
import torch

from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.data.turns import TurnRenderer
from rlinf_vlm.types import ImagePart, Message, RowError
from tests.unit.data.builders import png, talk

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>"
    "\n\n{% endif %}{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Puts something into the last answer that is not in earlier ones, as Qwen3's thinking models do."""


def positions(ids, images):
    return torch.zeros(3, len(ids), dtype=torch.int64)


@pytest.fixture
def renderer(processor):
    return Renderer(processor, positions, RenderOptions())


@pytest.fixture
def thinking(processor):
    before = processor.chat_template
    processor.chat_template = THINKING
    yield Renderer(processor, positions, RenderOptions())
    processor.chat_template = before


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("role", ["user", "tool"])
def test_ids_add_up_to_the_rendering_of_the_whole_conversation(renderer, processor, role):
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    turns = TurnRenderer(renderer)
    asked = talk(("user", "what colour is it?"), images=(png(),))
    message = Message(role=role, parts=("no, look: ", ImagePart(), " again"))
    shown = [renderer.images(png((3, 200, 9), (112, 56)), None)]
    told = turns.after_answer(message, shown, last_id=end)
    ids = [*renderer.prompt_ids(asked), *ids_of(processor, "it is red"), end, *told.token_ids]
    whole = [*asked.messages, Message(role="assistant", parts=("it is red",)), message]
    text = renderer.apply_template(whole, add_generation_prompt=True)
    assert ids == ids_of(processor, text)
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert told.token_ids.count(image) == 1 and told.seen_ids.count(image) == shown[0].num_features > 1
    assert [i for i in told.seen_ids if i != image] == [i for i in told.token_ids if i != image]
    newline = ids_of(processor, "\n")
    assert list(told.token_ids[: len(newline)]) == newline, "the template's newline after the end of the turn"


def test_an_answer_that_ended_with_another_token_is_ended(renderer, processor):
    end, other = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    turns, message = TurnRenderer(renderer), Message(role="user", parts=("red",))
    ended = turns.after_answer(message, [], last_id=end)
    assert turns.after_answer(message, [], last_id=other).token_ids == (end, *ended.token_ids)


def test_what_a_template_puts_into_a_last_answer_is_not_told(thinking, processor):
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    told = TurnRenderer(thinking).after_answer(Message(role="user", parts=("red",)), [], last_id=end)
    text = processor.tokenizer.decode(told.token_ids)
    assert text == "\n<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_an_opening_stands_before_the_mark_of_the_first_turn(renderer, processor):
    asked = talk(("user", "what colour is it?"), images=(png(),))
    message = Message(role="user", parts=("look",))
    given_way, told = TurnRenderer(renderer).after_prompt(asked, message, [])
    ids = renderer.prompt_ids(asked)
    text = renderer.apply_template([*asked.messages, message], add_generation_prompt=True)
    assert [*ids[: len(ids) - given_way], *told.token_ids] == ids_of(processor, text)
    assert given_way == len(ids_of(processor, "<|im_start|>assistant\n"))


def test_a_message_whose_images_are_not_those_of_its_text_is_refused(renderer):
    turns = TurnRenderer(renderer)
    shown = [renderer.images(png(), None)]
    with pytest.raises(RowError, match="1 image placeholders .* 0 images"):
        turns.after_answer(Message(role="user", parts=(ImagePart(),)), [], last_id=0)
    with pytest.raises(RowError, match="2 image placeholders .* 1 images"):
        turns.after_answer(Message(role="user", parts=("<|image_pad|>", ImagePart())), shown, last_id=0)
    with pytest.raises(RowError, match="video"):
        turns.after_answer(Message(role="user", parts=("<|video_pad|>",)), [], last_id=0)


def test_a_template_that_has_no_place_for_it_is_refused(processor):
    before = processor.chat_template
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    try:
        turns = TurnRenderer(Renderer(processor, positions, RenderOptions()))
        with pytest.raises(RowError, match="no tools here"):
            turns.after_answer(Message(role="tool", parts=("x",)), [], last_id=0)
    finally:
        processor.chat_template = before
