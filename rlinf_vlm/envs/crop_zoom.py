"""An environment with pictures: the policy asks for a part of a picture and is shown it, enlarged.

    policy       <tool_call>{"name": "crop_zoom", "arguments": {"bbox": [250, 0, 500, 400], "image": 0}}</tool_call>
    environment  [picture] "This is the part that you asked for."                       -> the policy's next turn
    policy       It is a heron. Answer: ...                                             -> no call: it is over

``bbox`` (or ``bbox_2d``, as Qwen-VL writes it) is left, top, right, bottom, from the picture's upper left corner: in
thousandths of its width and height, or in its own pixels (``coordinates``). ``image`` is the picture's number in the
row, 0 where it is not given; cut-out parts are no pictures that one could cut from.

Dataflow: last call of a turn (``tool_calls``) -> the box in whole pixels, rounded outwards -> enlarged -> PIL image.
Invariants: a call that cannot be used is answered with what is wrong, and is not the end; nothing is repeated of what
the policy said; what is shown is at most ``max_side`` pixels wide and high, whatever was asked for. ``info`` is of the
whole conversation: "crops" that were shown, "parse_errors" (calls that could not be read), "tool_errors" (that could be
read but not used).
Not here: the reward, and image tokens: how many a part takes is the processor's (env.max_observation_tokens).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from rlinf_vlm.config.base import Block
from rlinf_vlm.envs.options import Role, read_options
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.envs.tool_calls import BadCall, ToolCall, last_call

if TYPE_CHECKING:
    from PIL.Image import Image

TOOL = "crop_zoom"
THOUSANDTHS = 1000
LARGEST = 1e9
"""Coordinates are smaller."""
SHOWN = "This is the part that you asked for."
CALL_AGAIN = "Call the tool again, or give the final answer without a tool call."


class CropZoomOptions(Block):
    """``env.options`` of ``crop_zoom``."""

    coordinates: Literal["relative", "pixels"] = "relative"
    """What a box is in: relative: thousandths of the picture's width and height (Qwen3-VL); pixels: of the picture as
    it stands in the row, which a policy sees after the processor has resized it."""
    zoom: float = Field(default=2.0, ge=1.0)
    """How many times a part is enlarged, at least."""
    min_side: int = Field(default=224, ge=1)
    """Pixels that the shorter side of what is shown has at least, unless the longer one is at its limit."""
    max_side: int = Field(default=560, ge=1)
    """Pixels that the longer side of what is shown has at most; a part that is larger is made smaller."""
    smallest: int = Field(default=4, ge=1)
    """Pixels of the picture that a box has to hold in width and in height."""
    max_ratio: float = Field(default=8.0, ge=1.0)
    """How many times longer one side of a box may be than the other: processors refuse long stripes."""
    role: Role = "user"
    """Whose message the environment's is: user (any model) or tool (Qwen3-VL)."""

    @model_validator(mode="after")
    def _consistent(self) -> CropZoomOptions:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side={self.min_side} is above max_side={self.max_side}; lower it")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """text: what is said; image: what is shown, RGB, None where nothing is."""

    text: str
    image: Image | None = None


class _Unusable(ValueError):
    """What is wrong with a call, one sentence for the policy."""


class CropZoom:
    """One conversation about one row's pictures."""

    def __init__(self, *, images: Sequence[Image], options: CropZoomOptions) -> None:
        """images: of the row, RGB."""
        self._images = tuple(images)
        self._options = options
        self._over = False
        self._info = {"crops": 0, "parse_errors": 0, "tool_errors": 0}

    def reset(self) -> tuple[None, dict[str, Any]]:
        """Shows nothing before the first turn."""
        return None, dict(self._info)

    def step(self, response_text: str) -> tuple[Observation | None, bool, dict[str, Any]]:
        """(what is shown, None at the end; whether it is over; info). Raises RuntimeError once it is over."""
        if self._over:
            raise RuntimeError("the conversation is over; an environment is made for one")
        call = last_call(response_text)
        self._over = call is None
        return None if call is None else self._answered(call), self._over, dict(self._info)

    def format_observation(self, observation: Observation) -> dict[str, Any]:
        """The message: the picture, where there is one, and the text."""
        if observation.image is None:
            return {"role": self._options.role, "content": observation.text}
        parts = [{"type": "image", "image": observation.image}, {"type": "text", "text": observation.text}]
        return {"role": self._options.role, "content": parts}

    def close(self) -> None:
        """Lets the pictures go."""
        self._over = True
        self._images = ()

    def _answered(self, call: ToolCall | BadCall) -> Observation:
        if isinstance(call, BadCall):
            self._info["parse_errors"] += 1
            return Observation(text=f"{call.problem} {CALL_AGAIN}")
        try:
            part = self._cut(call)
        except _Unusable as reason:
            self._info["tool_errors"] += 1
            return Observation(text=f"{reason} {CALL_AGAIN}")
        self._info["crops"] += 1
        return Observation(text=SHOWN, image=part)

    def _cut(self, call: ToolCall) -> Image:
        """The part that is asked for, enlarged. Raises _Unusable."""
        if call.name != TOOL:
            raise _Unusable(f'There is no such tool; there is "{TOOL}".')
        image = self._chosen(call.arguments.get("image"))
        box = self._box(call.arguments, image.width, image.height)
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) < self._options.smallest:
            raise _Unusable("The box is too small.")
        if max(width, height) > self._options.max_ratio * min(width, height):
            raise _Unusable(f"The box is too narrow: one side may be {self._options.max_ratio:g} times the other.")
        return enlarged(image, box, self._options)

    def _chosen(self, number: Any) -> Image:
        if not self._images:
            raise _Unusable("There is no picture.")
        number = 0 if number is None else number
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(self._images):
            raise _Unusable(f'The argument "image" has to be a whole number from 0 to {len(self._images) - 1}.')
        return self._images[number]

    def _box(self, arguments: Mapping[str, Any], width: int, height: int) -> tuple[int, int, int, int]:
        """The box in whole pixels of a picture of that size, rounded outwards. Raises _Unusable."""
        given = arguments.get("bbox", arguments.get("bbox_2d"))
        if not isinstance(given, list) or len(given) != 4 or not all(_is_number(value) for value in given):
            raise _Unusable('The tool needs the argument "bbox": four numbers, left, top, right, bottom.')
        left, top, right, bottom = given
        if not (left < right and top < bottom):
            raise _Unusable("The box is empty: left has to be below right, and top below bottom.")
        relative = self._options.coordinates == "relative"
        most_x, most_y = (THOUSANDTHS, THOUSANDTHS) if relative else (width, height)
        if left < 0 or top < 0 or right > most_x or bottom > most_y:
            raise _Unusable(f"The box leaves the picture: x goes from 0 to {most_x}, y from 0 to {most_y}.")
        return (
            math.floor(left * width / most_x),
            math.floor(top * height / most_y),
            math.ceil(right * width / most_x),
            math.ceil(bottom * height / most_y),
        )


def enlarged(image: Image, box: tuple[int, int, int, int], options: CropZoomOptions) -> Image:
    """The part of ``image`` in ``box`` (left, top, right, bottom, in pixels), at the size that ``options`` say."""
    from PIL.Image import Resampling

    width, height = box[2] - box[0], box[3] - box[1]
    scale = max(options.zoom, options.min_side / min(width, height))
    scale = min(scale, options.max_side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.crop(box).resize(size, Resampling.BICUBIC)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST  # not NaN, and no integer that is too large for a float


def build_env(*, sample: EnvSample, args: Mapping[str, Any]) -> CropZoom:
    """The environment of a row. Raises UserError for args that it does not take."""
    return CropZoom(images=sample.images, options=read_options(args, CropZoomOptions))
