"""The text of a placement rule: which resource ranks go to which process ranks, without knowing what a resource is.

    ranks     := segment ("," segment)*
    segment   := resources [":" processes]    without processes: one for each resource
    resources := "all" | int | int "-" int    both ends belong to the range
    processes := int | int "-" int

Dataflow: the value under a key -> Rule -> Segments; ``placement`` turns these into processes on nodes.
Invariants of what is returned: resources ascend without repeats and lie in 0..num_resources-1, process ranks are
0..N-1 without a gap, and in each segment one of the two counts divides the other.
Every mistake raises UserError with the key, what is wrong, and the column and text of the piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from rlinf_vlm.types import UserError

KEY = "cluster.component_placement"

_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of the rule; ``column`` counts from 1."""

    text: str
    column: int

    def split(self, separator: str) -> list[Piece]:
        pieces, start = [], 0
        for part in self.text.split(separator):
            indent = len(part) - len(part.lstrip())
            pieces.append(Piece(text=part.strip(), column=self.column + start + indent))
            start += len(part) + len(separator)
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Resource ranks and the process ranks that they go to."""

    resources: range
    processes: range
    piece: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule under its key, and how many resources it chooses from.

    have: the resources in words, "the cluster has 1 worker slot on 1 node"; more(n): the setting that gives at least n.
    """

    key: str
    value: object
    num_resources: int
    have: str
    more: Callable[[int], str]

    @property
    def where(self) -> str:
        return f"{KEY}.{self.key}"

    @property
    def all_instead(self) -> str:
        """How to write ``all``; a key with a comma cannot be named on a command line."""
        return f"{self.where}=all" if "," not in self.key else f"'{self.key}: all' in {KEY}"

    def fail(self, piece: Piece, what: str) -> NoReturn:
        raise UserError(f"{self.where}: {what} (at column {piece.column}, {piece.text!r}, of {str(self.value)!r})")


def parse_rule(rule: Rule) -> list[Segment]:
    """Reads the rule and checks order, bounds and divisibility. Raises UserError."""
    segments: list[Segment] = []
    next_resource = next_process = 0
    for piece in Piece(text=_text(rule), column=1).split(","):
        if not piece.text:
            rule.fail(piece, "an empty segment; remove the extra comma")
        parts = piece.split(":")
        if len(parts) > 2:
            rule.fail(parts[2], "a segment is resources[:processes], with one colon at most")
        resources = _read_resources(rule, parts[0], next_resource)
        if len(parts) == 2:
            processes = _read_range(rule, parts[1], "processes must be a rank or first-last")
        else:
            processes = range(next_process, next_process + len(resources))
        if processes.start != next_process:
            example = f"{next_process}-{next_process + processes.start}"
            rule.fail(
                parts[-1],
                f"process ranks must go on from {next_process} without a gap; write ranks such as {example}",
            )
        if len(resources) % len(processes) and len(processes) % len(resources):
            counts = f"processes: {len(processes)}, resources: {len(resources)}"
            rule.fail(piece, f"one number must divide the other ({counts})")
        segments.append(Segment(resources=resources, processes=processes, piece=piece))
        next_resource, next_process = resources.stop, processes.stop
    return segments


def _text(rule: Rule) -> str:
    """The rule as text. An int is a resource, unless YAML read an unquoted ``a:b`` as a base-60 number."""
    value = rule.value
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= max(60, rule.num_resources):
            meant = f"{value // 60}:{value % 60}"
            raise UserError(
                f"{rule.where}: there is no resource {value} ({rule.have}); YAML reads an unquoted {meant} as the "
                f'base-60 number {value}: if that was meant, quote it, "{meant}"'
            )
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{rule.where}: {value!r} is no placement; write 'all', a rank or ranges such as '0-3' or '0-1:0-3'"
        )
    return value


def _read_resources(rule: Rule, piece: Piece, next_resource: int) -> range:
    if piece.text == "all":
        resources = range(rule.num_resources)
    else:
        resources = _read_range(rule, piece, "resources must be 'all', a rank or first-last")
    if resources.stop > rule.num_resources:
        asked = f"resource {resources.start}"
        if len(resources) > 1:
            asked = f"resources {resources.start}-{resources.stop - 1}"
        remedy = f"set {rule.all_instead} or {rule.more(resources.stop)}"
        rule.fail(piece, f"asks for {asked} but {rule.have}, numbered from 0; {remedy}")
    if resources.start < next_resource:
        rule.fail(
            piece, f"resources must ascend without repeats; after the segments before, {next_resource} is the least"
        )
    return resources


def _read_range(rule: Rule, piece: Piece, allowed: str) -> range:
    match = _RANGE.fullmatch(piece.text)
    if match is None:
        rule.fail(piece, allowed)
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        rule.fail(piece, f"a range must ascend, {first} comes before {last}")
    return range(first, last + 1)
