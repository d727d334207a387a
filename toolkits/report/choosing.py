"""Which steps, which samples of a step, and how much of a text the page has room for. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Thing = TypeVar("Thing")

LONGEST_TEXT = 20_000
"""Characters of one text in the page: what is longer is not read there."""


def evenly(things: Sequence[Thing], most: int) -> list[Thing]:
    """At most ``most`` of ``things``, in order: the first, the last and some evenly spaced between; of one, the
    last."""
    count = len(things)
    if most >= count:
        return list(things)
    if most <= 1:
        return list(things[-1:])[:most]
    return [things[round(place * (count - 1) / (most - 1))] for place in range(most)]


def whole_groups(groups: Sequence[Sequence[Thing]], most: int) -> list[Thing]:
    """At most ``most`` members of evenly spaced ``groups``: whole ones as long as there is room, since answers to one
    prompt are there to be compared; of groups that are larger than that, the first members of one."""
    if sum(len(group) for group in groups) <= most:
        return [one for group in groups for one in group]
    largest = max(len(group) for group in groups)
    kept = evenly(groups, max(1, most // largest))
    return [one for group in kept for one in group][:most]


def shortened(text: str, most: int = LONGEST_TEXT) -> str:
    """``text``; of a longer one than ``most`` characters the beginning, the end, and between them what is left out."""
    left = len(text) - most
    if left <= 0:
        return text
    half = most // 2
    return f"{text[:half]}\n[.. {left:,} characters are left out here ..]\n{text[left + half :]}"
