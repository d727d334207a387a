"""``env.options`` as a block of an environment: checked, with the nearest key for one that there is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from rlinf_vlm.config.base import Block
from rlinf_vlm.config.load import load_block
from rlinf_vlm.types import UserError

Options = TypeVar("Options", bound=Block)
Role = Literal["user", "tool"]
"""Whose message an observation is. Every chat template knows ``user``. As ``tool``, Qwen3-VL's template writes what
that model has learned (a user's turn in ``<tool_response>``); those of Qwen2-VL and Qwen2.5-VL write a turn of a role
``tool`` that those models have never seen, and templates of other families may leave it out."""


def read_options(args: Mapping[str, Any], block: type[Options]) -> Options:
    """``args`` as ``block``. Raises UserError, a line a mistake, with the keys as they stand in the config."""
    try:
        return load_block(args, block)
    except UserError as error:
        raise UserError(
            "\n".join(f"env.options.{line.removeprefix('.')}" for line in str(error).splitlines())
        ) from None
