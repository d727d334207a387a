"""Blank images: in a picture's place, as long in tokens, with nothing in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlinf_vlm.data.image_processor import ImageProcessor
from rlinf_vlm.data.images import blank_image
from rlinf_vlm.data.rendering import Renderer, RenderOptions
from rlinf_vlm.types import ProcessedImage, RowError
from tests.unit.data.builders import png, talk

TURNS = (("user", "What colour is it?"), ("assistant", "red"))


class CountingProcessor:
    """The processor, with a count of the images that it was given."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token = processor.image_token
        self.seen = 0

    def __call__(self, **arguments: Any) -> Any:
        self.seen += 1
        return self._processor(**arguments)


def positions(input_ids: torch.Tensor, images: Any) -> torch.Tensor:
    """Depends on the images' grids, as M-RoPE does."""
    extent = sum(int(image.tensors["image_grid_thw"].prod()) for image in images)
    return torch.arange(len(input_ids)).expand(3, -1) + extent


def renderers(processor: Any) -> tuple[Renderer, Renderer]:
    return tuple(Renderer(processor, positions, RenderOptions(blank_images=blank)) for blank in (False, True))


def even(image: ProcessedImage) -> bool:
    """Whether every patch of the image holds one value a colour channel."""
    channels = image.tensors["pixel_values"].unflatten(1, (3, -1)).unbind(1)
    return all(len(channel.unique()) == 1 for channel in channels)


@pytest.mark.parametrize("size", [(64, 64), (90, 140), (300, 30)])
def test_all_but_the_pixels_is_the_same(processor, size):
    conversation = talk(*TURNS, images=(png(size=size), png((0, 0, 255), (56, 112))))
    seeing, blank = (made.render(conversation, row=0) for made in renderers(processor))
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(getattr(seeing, name), getattr(blank, name)), name
    assert seeing.prompt_length == blank.prompt_length
    for left, right in zip(seeing.images, blank.images, strict=True):
        assert torch.equal(left.tensors["image_grid_thw"], right.tensors["image_grid_thw"])
        assert not torch.equal(left.tensors["pixel_values"], right.tensors["pixel_values"])
        assert left.key != right.key and even(right)


def test_the_size_is_that_of_the_upright_picture(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (168, 56), "red").save(tmp_path / "side.jpg", exif=exif)
    seeing, blank = (made.images("side.jpg", tmp_path) for made in renderers(processor))
    assert seeing.token_ids == blank.token_ids
    height, width = seeing.tensors["image_grid_thw"][0, 1:].tolist()
    assert height > width and torch.equal(seeing.tensors["image_grid_thw"], blank.tensors["image_grid_thw"])


def test_text_stays_as_it_is(processor):
    seeing, blank = (made.render(talk(*TURNS), row=0) for made in renderers(processor))
    assert torch.equal(seeing.input_ids, blank.input_ids) and blank.images == ()


def test_choices_are_rendered_with_blanks_as_well(processor):
    conversation = talk(*TURNS, images=(png(),), choices=("red", "blue"), choice_index=0)
    _, blank = renderers(processor)
    samples = blank.render_choices(conversation, row=0)
    assert len(samples) == 2 and all(even(sample.images[0]) for sample in samples)


def test_a_blank_of_one_size_is_made_once(processor, tmp_path):
    counting = CountingProcessor(processor)
    images = ImageProcessor(counting, 1 << 20, blank=True)
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    refs = [png(), png((0, 0, 255)), "a.png", Image.new("RGB", (64, 64), "green"), png((1, 2, 3))["bytes"]]
    blanks = [images(ref, tmp_path) for ref in refs]
    assert counting.seen == 1 and len({blank.key for blank in blanks}) == 1
    other = images(png(size=(64, 96)), tmp_path)
    assert counting.seen == 2 and other.key != blanks[0].key
    # as many patches, but the picture is another: 32 x 128 is not 128 x 32
    assert images(png(size=(32, 128)), None).key != images(png(size=(128, 32)), None).key


def test_a_blank_in_use_stays_in_a_full_cache(processor):
    counting = CountingProcessor(processor)
    images = ImageProcessor(counting, 3 * 64 * 1176 * 4, blank=True)  # three images of 112 x 112
    for side in range(8):
        images(png(), None)  # 64 x 64, between all the others
        images(png(size=(56 + side, 56)), None)
    assert counting.seen == 1 + 8, "the one that is used all the time was never made again"


def test_the_cache_of_one_is_not_that_of_the_other(processor):
    seeing, blank = renderers(processor)
    ref = png()
    first = [made.images(ref, None).key for made in (seeing, blank)]
    assert [made.images(ref, None).key for made in (seeing, blank)] == first and first[0] != first[1]


def test_a_broken_image_is_broken_also_when_its_blank_is_known(processor):
    _, blank = renderers(processor)
    whole = png()
    blank.render(talk(*TURNS, images=(whole,)), row=0)
    cut = {"bytes": whole["bytes"][:-30], "path": None}
    with pytest.raises(RowError, match="does not decode"):
        blank.render(talk(*TURNS, images=(cut,)), row=1)
    with pytest.raises(RowError, match="does not exist"):
        blank.render(talk(*TURNS, images=("gone.png",)), row=2, base=Path("/nowhere"))


def test_a_shape_that_the_processor_refuses_is_refused_in_both(processor):
    for made in renderers(processor):
        with pytest.raises(RowError, match="refuses the image of 3000x4 pixels"):
            made.images(png(size=(3000, 4)), None)


def test_the_picture_is_even_grey():
    blank = blank_image((5, 3))
    assert (blank.mode, blank.size) == ("RGB", (5, 3))
    assert blank.getcolors() == [(15, (128, 128, 128))]
