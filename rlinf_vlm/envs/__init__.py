"""Environments: what the policy speaks with, turn by turn. No torch.

An environment is made by a ``build_env`` here or anywhere else, once for each conversation; what it has to have is in
``protocol``. Importing this module loads none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlinf_vlm.envs.protocol import BuildEnv, Environment, EnvSample, is_environment
from rlinf_vlm.registry import resolve
from rlinf_vlm.types import UserError

ENVIRONMENTS = {
    "single_turn": "rlinf_vlm.envs.single_turn:build_env",
    "geo3k_tool": "rlinf_vlm.envs.geo3k_tool:build_env",
    "crop_zoom": "rlinf_vlm.envs.crop_zoom:build_env",
}


def find_builder(name: str) -> BuildEnv:
    """The ``build_env`` of a name in ``ENVIRONMENTS`` or of ``pkg.module:build_env``. Raises UserError."""
    try:
        found = resolve("environment", name, ENVIRONMENTS)
    except ValueError as error:
        raise UserError(f"env.name: {error}") from error
    if not callable(found):
        raise UserError(f"env.name={name!r} is a {type(found).__name__}; name a function build_env(sample, args)")
    return found


def make_env(build: BuildEnv, sample: EnvSample, args: Mapping[str, Any]) -> Environment:
    """The environment of one conversation. Raises TypeError where it lacks a method, and what ``build`` raises."""
    made = build(sample=sample, args=args)
    if not is_environment(made):
        raise TypeError(f"build_env gave a {type(made).__name__} without reset, step, format_observation and close")
    return made
