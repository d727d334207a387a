"""Rewards: how good a sampled answer is. No torch.

A reward is a class here or anywhere else: made with its options as keywords, called with a ``RewardInput``, giving a
``Score`` (or an awaitable of one). Importing this module loads none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.registry import resolve
from rlinf_vlm.rewards.protocol import Reward
from rlinf_vlm.types import UserError

REWARDS = {
    "math": "rlinf_vlm.rewards.math:MathReward",
    "geo3k": "rlinf_vlm.rewards.geo3k:Geo3kReward",
    "choice": "rlinf_vlm.rewards.choice:ChoiceReward",
    "format": "rlinf_vlm.rewards.format:FormatReward",
    "composite": "rlinf_vlm.rewards.composite:CompositeReward",
}


def make_reward(name: str, options: Mapping[str, Any] | None = None) -> Reward:
    """The reward of a name in ``REWARDS`` or of ``pkg.module:Thing``, made with ``options``. Raises UserError.

    A class is made with the options; a function is a reward as it stands and takes none.
    """
    options = dict(options or {})
    try:
        found = resolve("reward", name, REWARDS)
    except ValueError as error:
        raise UserError(f"reward: {error}") from error
    if not callable(found):
        raise UserError(f"reward {name!r} is a {type(found).__name__}; name a class or a function")
    if not isinstance(found, type):
        if options:
            raise UserError(f"reward {name!r} is a function and takes no options, but has {', '.join(sorted(options))}")
        return found
    try:
        made = found(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward {name!r} with options {options}: {error}") from error
    if not callable(made):
        raise UserError(f"reward {name!r} has no __call__(RewardInput)")
    return made
