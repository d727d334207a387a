from __future__ import annotations

import base64
import io
import pickle

import pytest
import torch
from jinja2 import TemplateError
from PIL import Image

from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.types import IGNORE_INDEX, ImagePart, Message, RowError, UserError
from tests.unit.data.builders import png, talk


def flat_positions(input_ids: torch.Tensor, images) -> torch.Tensor:
    return torch.arange(len(input_ids)).expand(3, -1)


def renderer(processor, **options) -> Renderer:
    return Renderer(processor, flat_positions, RenderOptions(**options))


def supervised_text(processor, sample) -> str:
    return processor.tokenizer.decode(sample.labels[sample.labels != IGNORE_INDEX])


QUESTION = ("user", "What colour is it?")


def test_ids_are_those_of_the_processor(processor):
    images = (png(), png((0, 0, 255), (90, 140)))
    sample = renderer(processor).render(talk(QUESTION, ("assistant", "red and blue"), images=images), row=3)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What colour is it?"}]
    chat = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "red and blue"}]},
    ]
    opened = [Image.open(io.BytesIO(image["bytes"])) for image in images]
    text = processor.apply_chat_template(chat, tokenize=False)
    expected = processor(text=[text], images=opened, return_tensors="pt")
    assert torch.equal(sample.input_ids, expected["input_ids"][0])
    assert torch.equal(torch.cat([image.tensors["pixel_values"] for image in sample.images]), expected["pixel_values"])
    assert torch.equal(
        torch.cat([image.tensors["image_grid_thw"] for image in sample.images]), expected["image_grid_thw"]
    )
    assert [image.num_features for image in sample.images] == [16, 20]


def test_only_the_answer_and_its_end_are_supervised(processor):
    sample = renderer(processor).render(talk(QUESTION, ("assistant", "A. red"), images=(png(),)), row=0)
    assert supervised_text(processor, sample) == "A. red<|im_end|>"
    # the newline that the template puts after the end of the turn is there, and not learned
    assert processor.tokenizer.decode(sample.input_ids[-2:]) == "<|im_end|>\n"
    assert sample.labels[-1] == IGNORE_INDEX
    assert (sample.labels[: sample.prompt_length] == IGNORE_INDEX).all()
    assert processor.tokenizer.decode(sample.input_ids[: sample.prompt_length]).endswith("<|im_start|>assistant\n")


def test_the_prompt_is_what_the_model_sees_at_inference(processor):
    made = renderer(processor)
    conversation = talk(QUESTION, ("assistant", "red"))
    sample = made.render(conversation, row=0)
    prompt = processor.tokenizer(made.prompt_text(conversation.messages[:1]), add_special_tokens=False)["input_ids"]
    assert sample.input_ids[: sample.prompt_length].tolist() == prompt


@pytest.mark.parametrize(
    "answer", ["assistant", "user", "i", "m_end", "\n", "<", "What colour is it?", "B. no\n\nyes "]
)
def test_answers_that_look_like_the_template(processor, answer: str):
    sample = renderer(processor).render(talk(QUESTION, ("assistant", answer)), row=0)
    assert supervised_text(processor, sample) == answer + "<|im_end|>"


def test_every_assistant_turn_is_supervised(processor):
    conversation = talk(
        ("system", "Be brief."),
        QUESTION,
        ("assistant", "red"),
        ("user", "sure?"),
        ("assistant", "yes"),
        images=(png(),),
    )
    sample = renderer(processor).render(conversation, row=0)
    assert supervised_text(processor, sample) == "red<|im_end|>yes<|im_end|>"


def test_choices_share_the_prompt_and_the_image(processor):
    conversation = talk(
        QUESTION, ("assistant", "B. red"), images=(png(),), choices=("A. blue", "B. red"), choice_index=1
    )
    first, second = renderer(processor).render_choices(conversation, row=9)
    assert [supervised_text(processor, item) for item in (first, second)] == ["A. blue<|im_end|>", "B. red<|im_end|>"]
    assert first.images[0] is second.images[0] and (first.choice, second.choice) == (0, 1)
    assert torch.equal(first.input_ids[: first.prompt_length], second.input_ids[: second.prompt_length])
    whole = renderer(processor).render(conversation, row=9)
    assert torch.equal(whole.input_ids, second.input_ids) and whole.choice == 1


def test_the_processor_runs_once_for_an_image(processor):
    class Counting:
        """The real processor, counted."""

        def __init__(self, inner):
            self.inner, self.calls = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, *args, **kwargs):
            self.calls += 1
            return self.inner(*args, **kwargs)

    counting = Counting(processor)
    made = renderer(counting)
    for row in range(4):
        made.render(talk(QUESTION, ("assistant", "red"), images=(png(),)), row=row)
    assert counting.calls == 1
    made.render(talk(QUESTION, ("assistant", "red"), images=(png((1, 2, 3)),)), row=5)
    assert counting.calls == 2


def test_the_cache_is_bounded(processor):
    made = renderer(processor, cache_bytes=700_000)  # two images of 64 patches x 1176 floats
    for shade in range(8):
        made.render(talk(QUESTION, ("assistant", "red"), images=(png((shade, 0, 0)),)), row=shade)
    assert len(made.images._recent) == 2


def test_rows_that_cannot_be_used(processor):
    made = renderer(processor)
    with pytest.raises(RowError, match=r"1 image placeholders .* 0 images"):
        made.render(talk(("user", "a literal <|image_pad|> in the text"), ("assistant", "x")), row=0)
    with pytest.raises(RowError, match="video placeholder"):
        made.render(talk(("user", "a literal <|video_pad|>"), ("assistant", "x")), row=0)
    with pytest.raises(RowError, match="cut|decode|truncated|identify|image"):
        made.render(talk(QUESTION, ("assistant", "x"), images=({"bytes": png()["bytes"][:60], "path": None},)), row=0)
    with pytest.raises(RowError, match="refuses the image of 600x2 pixels"):
        made.render(talk(QUESTION, ("assistant", "x"), images=(png(size=(600, 2)),)), row=0)


def test_limits_name_both_numbers(processor):
    conversation = talk(QUESTION, ("assistant", "red"), images=(png(),))
    length = renderer(processor).render(conversation, row=0).prompt_length
    assert renderer(processor, max_prompt_length=length).render(conversation, row=0).prompt_length == length
    with pytest.raises(RowError, match=f"prompt has {length} tokens, more than data.max_prompt_length={length - 1}"):
        renderer(processor, max_prompt_length=length - 1).render(conversation, row=0)
    with pytest.raises(RowError, match=r"more than actor.max_tokens_per_micro_batch=20"):
        renderer(processor, max_length=20, max_length_name="actor.max_tokens_per_micro_batch").render(
            conversation, row=0
        )


def test_without_the_chat_template(processor):
    sample = renderer(processor, chat_template=False).render(
        talk(QUESTION, ("assistant", "red"), images=(png(),)), row=0
    )
    text = processor.tokenizer.decode(sample.input_ids)
    assert text.replace("<|image_pad|>", "") == "What colour is it?\nred<|im_end|>"
    assert supervised_text(processor, sample) == "red<|im_end|>"


def test_a_template_that_rewrites_the_past_is_refused(processor):
    made = renderer(processor)
    made.processor = Forgetful(processor)
    with pytest.raises(RowError, match="changes earlier text"):
        made.render(talk(QUESTION, ("assistant", "one"), ("user", "and?"), ("assistant", "two")), row=0)


class Forgetful:
    """A processor whose template drops all but the last user turn."""

    def __init__(self, inner):
        self.inner = inner

    def apply_chat_template(self, messages, **kwargs):
        return self.inner.apply_chat_template(messages[-2:], **kwargs)


def test_a_template_without_an_end_of_turn_is_refused(processor):
    made = renderer(processor)
    made.processor = Endless()
    with pytest.raises(RowError, match="no special token that a model could learn to stop at"):
        made.render(talk(QUESTION, ("assistant", "one")), row=0)


class Endless:
    """A processor whose template is plain text."""

    def apply_chat_template(self, messages, add_generation_prompt, **kwargs):
        text = "".join(f"{message['role']}: {message['content'][0]['text']}\n" for message in messages)
        return text + ("assistant: " if add_generation_prompt else "")


def test_a_renderer_travels_to_other_processes(processor):
    conversation = talk(QUESTION, ("assistant", "red"), images=(png(),))
    made = renderer(processor)
    copy = pickle.loads(pickle.dumps(made))
    assert torch.equal(copy.render(conversation, row=0).input_ids, made.render(conversation, row=0).input_ids)


def test_images_may_stand_anywhere(processor):
    messages = (
        Message(role="user", parts=("first ", ImagePart(), " then ", ImagePart(), "?")),
        Message(role="assistant", parts=("red",)),
    )
    conversation = talk(QUESTION, ("assistant", "red"))
    conversation = type(conversation)(messages=messages, images=(png(), png((9, 9, 9))), question="q", answer="red")
    text = processor.tokenizer.decode(renderer(processor).render(conversation, row=0).input_ids)
    assert text.replace("<|image_pad|>", "").startswith(
        "<|im_start|>user\nfirst <|vision_start|><|vision_end|> then <|vision_start|><|vision_end|>?<|im_end|>"
    )


def test_a_template_is_checked_before_any_row(processor):
    made = renderer(processor)
    made.check_template()
    made.processor = Endless()
    with pytest.raises(UserError, match="chat template does not render .* data.apply_chat_template=false"):
        made.check_template()


def test_half_a_character_is_a_bad_row(processor):
    with pytest.raises(RowError, match="lone surrogate"):
        renderer(processor).render(talk(("user", "\ud83d x"), ("assistant", "y")), row=0)


def test_an_image_as_a_long_data_url(processor):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    file = io.BytesIO()
    noise.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert len(url) > 4000, "longer than a file name can be"
    made = renderer(processor)
    first = made.render(talk(QUESTION, ("assistant", "red"), images=(url,)), row=0)
    second = made.render(talk(QUESTION, ("assistant", "red"), images=(url,)), row=1)
    assert first.images[0] is second.images[0]
    with pytest.raises(RowError, match="cannot be read|does not exist"):
        made.render(talk(QUESTION, ("assistant", "red"), images=("x" * 400,)), row=2)


def test_images_without_bytes_are_known_by_their_pixels(processor):
    made = renderer(processor)
    for row in range(5):
        made.render(talk(QUESTION, ("assistant", "red"), images=(Image.new("RGB", (64, 64), "red"),)), row=row)
    (kept,) = made.images._recent.values()
    assert made.images._bytes == sum(tensor.numel() * tensor.element_size() for tensor in kept.tensors.values())


def test_an_evaluation_asks_for_the_last_turn(processor):
    conversation = talk(QUESTION, ("assistant", "red"), ("user", "sure?"), ("assistant", "yes"))
    sample = renderer(processor, last_turn_only=True).render(conversation, row=0)
    assert supervised_text(processor, sample) == "yes<|im_end|>"
    assert processor.tokenizer.decode(sample.input_ids[: sample.prompt_length]).count("red") == 1


def test_a_template_that_refuses_is_a_bad_row(processor):
    made = renderer(processor)
    made.processor = Strict()
    with pytest.raises(RowError, match="refuses the conversation: roles must alternate"):
        made.render(talk(QUESTION, ("assistant", "one")), row=0)


class Strict:
    """A processor whose template raises."""

    def apply_chat_template(self, messages, **kwargs):
        raise TemplateError("roles must alternate")


def test_a_first_token_that_the_template_leaves_out(processor):
    class WithStart:
        """The tokenizer, which puts the end-of-text token first, as some do with theirs."""

        bos_token = "<|endoftext|>"
        bos_token_id = processor.tokenizer.convert_tokens_to_ids(bos_token)

        def __getattr__(self, name):
            return getattr(processor.tokenizer, name)

        def __call__(self, text, add_special_tokens=True, **kwargs):
            start = self.bos_token if add_special_tokens else ""
            return processor.tokenizer(start + text, add_special_tokens=False, **kwargs)

    class Whole:
        """A processor around it."""

        tokenizer = WithStart()

        def __getattr__(self, name):
            return getattr(processor, name)

    plain = renderer(processor).render(talk(QUESTION, ("assistant", "red")), row=0)
    started = renderer(Whole()).render(talk(QUESTION, ("assistant", "red")), row=0)
    assert started.input_ids.tolist() == [WithStart.bos_token_id, *plain.input_ids.tolist()]
    assert supervised_text(processor, started) == "red<|im_end|>"
