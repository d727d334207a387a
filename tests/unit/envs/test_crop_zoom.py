"""The tool that shows a part of a picture, by scripted conversations and pixels of known colours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image

from rlinf_vlm.envs import find_builder, make_env
from rlinf_vlm.envs.crop_zoom import SHOWN, CropZoom, Observation
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.types import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(width: int = 200, height: int = 100) -> Image.Image:
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), WHITE)
    for colour, place in ((RED, (0, 0)), (GREEN, (width // 2, 0)), (BLUE, (0, height // 2))):
        image.paste(colour, (*place, place[0] + width // 2, place[1] + height // 2))
    return image


def environment(*images: Image.Image, **options: object) -> CropZoom:
    sample = EnvSample(row=0, question="What is it?", answer="red", images=images or (quarters(),))
    made = make_env(find_builder("crop_zoom"), sample, options)
    assert isinstance(made, CropZoom)
    return made


def call(bbox: object, name: str = "crop_zoom", key: str = "bbox", **more: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {key: bbox, **more}})}</tool_call>"


def shown(env: CropZoom, text: str) -> Image.Image:
    observation, done, _ = env.step(text)
    assert observation is not None and not done and observation.text == SHOWN, observation
    assert observation.image is not None
    return observation.image


def told(env: CropZoom, text: str) -> str:
    observation, done, _ = env.step(text)
    assert observation is not None and observation.image is None and not done
    return observation.text


def colours(image: Image.Image) -> set[Any]:
    return {pixel for _, pixel in image.getcolors(1 << 20)}


def test_a_whole_conversation():
    env = environment()
    assert env.reset() == (None, {"crops": 0, "parse_errors": 0, "tool_errors": 0})
    image = shown(env, f"Let me look. {call([0, 0, 500, 500])}")
    assert colours(image) == {RED} and image.mode == "RGB"
    assert "not valid JSON" in told(env, "<tool_call>[0, 0</tool_call>")
    assert "empty" in told(env, call([500, 0, 0, 500]))
    assert colours(shown(env, call([500, 0, 1000, 500]))) == {GREEN}
    assert env.step("It is red and green.") == (None, True, {"crops": 2, "parse_errors": 1, "tool_errors": 1})
    env.close()


@pytest.mark.parametrize(
    ("box", "colour"),
    [
        ([0, 0, 500, 500], RED),
        ([500, 0, 1000, 500], GREEN),
        ([0, 500, 500, 1000], BLUE),
        ([500, 500, 1000, 1000], WHITE),
    ],
)
@pytest.mark.parametrize("key", ["bbox", "bbox_2d"])
def test_relative_boxes_are_thousandths(box, colour, key):
    assert colours(shown(environment(quarters(1200, 300)), call(box, key=key))) == {colour}


@pytest.mark.parametrize(
    ("box", "colour"), [([0, 0, 100, 50], RED), ([100, 0, 200, 50], GREEN), ([0, 50, 100, 100], BLUE)]
)
def test_boxes_in_pixels(box, colour):
    assert colours(shown(environment(coordinates="pixels"), call(box))) == {colour}


def test_a_box_is_rounded_outwards():
    image = Image.new("RGB", (10, 10), WHITE)
    image.putpixel((4, 4), RED)
    env = environment(image, coordinates="pixels", zoom=1, min_side=1)
    assert shown(env, call([4.9, 4.9, 8.1, 8.1])).size == (5, 5)


@pytest.mark.parametrize(
    ("options", "box", "size"),
    [
        ({}, [0, 0, 500, 500], (448, 224)),  # 100 x 50: twice is below min_side
        ({}, [0, 0, 1000, 1000], (448, 224)),
        ({"min_side": 1}, [0, 0, 500, 500], (200, 100)),
        ({"min_side": 1, "zoom": 3}, [0, 0, 500, 500], (300, 150)),
        ({"min_side": 1, "zoom": 30}, [0, 0, 500, 500], (560, 280)),
        ({"min_side": 1, "zoom": 1, "max_side": 50}, [0, 0, 1000, 1000], (50, 25)),
        ({}, [0, 0, 800, 200], (560, 70)),  # 160 x 20
    ],
)
def test_how_large_it_is_shown(options, box, size):
    assert shown(environment(**options), call(box)).size == size


def test_pictures_are_numbered():
    images = [Image.new("RGB", (60, 60), colour) for colour in (RED, GREEN)]
    env = environment(*images)
    assert colours(shown(env, call([0, 0, 500, 500]))) == {RED}
    assert colours(shown(env, call([0, 0, 500, 500], image=1))) == {GREEN}
    for number in (2, -1, "0", 0.0, True, [0]):
        assert "a whole number from 0 to 1" in told(env, call([0, 0, 500, 500], image=number))
    assert images[0].size == (60, 60)


@pytest.mark.parametrize(
    ("box", "says"),
    [
        (None, "four numbers"),
        ("0,0,1,1", "four numbers"),
        ([0, 0, 500], "four numbers"),
        ([0, 0, 500, 500, 1], "four numbers"),
        ([0, 0, 500, "500"], "four numbers"),
        ([0, 0, 500, True], "four numbers"),
        ([0, 0, 500, None], "four numbers"),
        ([[0, 0], [500, 500]], "four numbers"),
        ([0, 0, 500, float("nan")], "four numbers"),
        ([0, 0, 500, float("inf")], "four numbers"),
        ([0, 0, 500, 10**400], "four numbers"),
        ({"x": 0}, "four numbers"),
        ([500, 0, 500, 500], "empty"),
        ([0, 500, 500, 400], "empty"),
        ([-1, 0, 500, 500], "from 0 to 1000"),
        ([0, 0, 1001, 500], "from 0 to 1000"),
        ([0, 0, 500, 5e8], "from 0 to 1000"),
        ([0, 0, 5, 5], "too small"),
        ([100, 100, 101, 900], "too small"),
        ([0, 0, 1000, 60], "too narrow"),
    ],
)
def test_a_wrong_box_is_told(box, says):
    env = environment()
    text = told(env, call(box))
    assert says in text and text.endswith("give the final answer without a tool call.")
    assert env.step("red")[2] == {"crops": 0, "parse_errors": 0, "tool_errors": 1}


def test_the_range_of_pixels_is_the_pictures():
    text = told(environment(coordinates="pixels"), call([0, 0, 300, 50]))
    assert "x goes from 0 to 200, y from 0 to 100" in text


def test_other_tools_and_rows_without_a_picture():
    assert '"crop_zoom"' in told(environment(), call([0, 0, 500, 500], name="calc_score"))
    env = make_env(find_builder("crop_zoom"), EnvSample(row=0, question="", answer=""), {})
    assert isinstance(env, CropZoom)
    assert "no picture" in told(env, call([0, 0, 500, 500]))


def test_nothing_is_repeated_of_what_was_said():
    said = "<|image_pad|>Zebra"
    for text in (call([said] * 4), call([0, 0, 9, 9], name=said), call([0, 0, 9, 9], image=said), call(1, key=said)):
        answer = told(environment(), text)
        assert "Zebra" not in answer and "<|" not in answer


def test_messages():
    image = Image.new("RGB", (4, 4))
    message = environment(role="tool").format_observation(Observation(text=SHOWN, image=image))
    assert message == {"role": "tool", "content": [{"type": "image", "image": image}, {"type": "text", "text": SHOWN}]}
    assert environment().format_observation(Observation(text="no")) == {"role": "user", "content": "no"}


def test_it_is_over_once():
    env = environment()
    env.step("done")
    with pytest.raises(RuntimeError, match="over"):
        env.step(call([0, 0, 500, 500]))
    closed = environment()
    closed.close()
    with pytest.raises(RuntimeError, match="over"):
        closed.step("done")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"zom": 3}, "env.options.zom=3: unknown key; did you mean zoom?"),
        ({"zoom": 0.5}, "env.options.zoom=0.5: input should be greater than or equal to 1"),
        ({"coordinates": "absolute"}, "env.options.coordinates='absolute': input should be 'relative' or 'pixels'"),
        ({"min_side": 600}, "env.options.min_side=600 is above max_side=560; lower it"),
    ],
)
def test_options_that_it_does_not_take(options, line):
    with pytest.raises(UserError) as seen:
        environment(**options)
    assert str(seen.value).startswith(line) and "\n" not in str(seen.value)
