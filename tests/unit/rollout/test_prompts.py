"""Rows as an engine is asked them, and what it may never answer."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from rlinf_vlm.data.kinds import KindOptions
from rlinf_vlm.data.kinds.geo3k import Geo3k
from rlinf_vlm.data.reading import BadRow
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.rollout.prompts import PromptReader, banned_ids


class Rows:
    """Rows of one file."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def locate(self, index):
        return "file.parquet", index

    def folder_of(self, index):
        return None


def png(size):
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 199)).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def reader(processor):
    options = KindOptions(prompt_key="problem", answer_key="answer", image_keys=("images",))
    rows = [
        {"problem": "<image>what<image> is it?", "answer": "5", "images": [png((112, 112)), png((140, 84))]},
        {"problem": "what is it?", "answer": "red", "images": []},
        {"problem": "what is it?", "answer": "red", "images": [{"bytes": b"no", "path": None}]},
        {"problem": "what is it? " * 40, "answer": "red", "images": []},
    ]
    renderer = Renderer(
        processor, lambda ids, images: torch.zeros(3, len(ids), dtype=torch.int64), RenderOptions(max_prompt_length=90)
    )
    return PromptReader(Rows(rows), Geo3k(options), renderer)


def test_an_image_is_one_token_and_the_engine_sees_all_of_its_tokens(reader, processor):
    prompt, conversation = reader[0].prompt, reader[0].conversation
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    assert prompt.token_ids.count(image) == 2 and [picture.size for picture in prompt.images] == [(112, 112), (140, 84)]
    expected = processor.apply_chat_template(
        [{"role": "user", "content": [
            {"type": "image"}, {"type": "text", "text": "what"}, {"type": "image"}, {"type": "text", "text": " is it?"},
        ]}],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    seen = processor(text=[expected], images=list(prompt.images))["input_ids"][0]
    assert list(prompt.seen_ids) == list(seen)
    assert len(prompt.seen_ids) - len(prompt.token_ids) == prompt.seen_ids.count(image) - 2 > 20
    assert "5" not in conversation.question and conversation.answer == "5"


def test_without_images_both_are_the_same(reader):
    prompt = reader[1].prompt
    assert prompt.token_ids == prompt.seen_ids and prompt.images == ()


def test_rows_that_cannot_be_asked_say_where_they_are(reader):
    assert len(reader) == 4
    broken, long = reader[2], reader[3]
    assert isinstance(broken, BadRow) and broken.reason.startswith("file.parquet row 2: image")
    assert isinstance(long, BadRow) and "more than data.max_prompt_length=90" in long.reason


def test_banned_are_the_marks_of_pictures_and_nothing_else(processor):
    names = processor.tokenizer.convert_ids_to_tokens(banned_ids(processor))
    assert set(names) == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}
    assert list(banned_ids(processor)) == sorted(banned_ids(processor))


def test_a_mark_that_the_tokenizer_does_not_know_bans_nothing(processor):
    class Other:
        tokenizer = processor.tokenizer
        image_token = "<|im_start|>"
        video_token = None
        start_image_token = "not in the vocabulary"

    extra = set(banned_ids(Other())) - set(banned_ids(processor))
    assert processor.tokenizer.convert_ids_to_tokens(list(extra)) == ["<|im_start|>"]


def test_the_template_check_tells_the_end_of_a_turn(processor):
    renderer = Renderer(processor, lambda ids, images: torch.zeros(3, len(ids)), RenderOptions())
    assert renderer.check_template() == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
