r"""A plane-geometry problem before it is drawn: points in true proportions, what is marked on them, what is asked.

Kinds of problems (geometry_easy, geometry_sums, geometry_hard) make each a ``Problem``: an exact answer by a formula,
and a figure whose points are placed so that each label is what a ruler or a protractor reads off it. ``measure`` is
that ruler: it knows coordinates only, no formulas, and so checks labels and answer independently.

Coordinates are in the unit of the length labels, y upwards; angles in degrees. Does not draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
Segment = tuple[str, str]
UNKNOWN = "x"
"""Label of what is asked, where it stands in the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surd:
    r"""``factor`` * sqrt(``radicand``), an exact number; ``surd`` makes one in lowest terms."""

    factor: int
    radicand: int = 1

    @property
    def value(self) -> float:
        """As a float."""
        return self.factor * math.sqrt(self.radicand)

    @property
    def latex(self) -> str:
        r"""``7``, ``\sqrt{13}`` or ``5\sqrt{3}``."""
        if self.radicand == 1:
            return str(self.factor)
        return f"{'' if self.factor == 1 else self.factor}\\sqrt{{{self.radicand}}}"


def surd(radicand: int, factor: int = 1) -> Surd:
    """``factor`` * sqrt(``radicand``) with all squares taken out of the root: surd(75) is 5 sqrt(3)."""
    for root in range(math.isqrt(radicand), 1, -1):
        if radicand % (root * root) == 0:
            return Surd(factor=factor * root, radicand=radicand // (root * root))
    return Surd(factor=factor, radicand=radicand)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLabel:
    """The length of the segment between two points: a number, or UNKNOWN."""

    ends: Segment
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AngleLabel:
    """The angle at a point between the ways to two others, below 180 degrees: a number, or UNKNOWN."""

    at: str
    arms: Segment
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is drawn.

    lines, dashed: segments; circles: (centre, a point on it); right_angles: (corner, arm, arm), marked by a square;
    equal: groups of segments of one length, marked by one tick, two ticks, ...; names: points whose letters stand in
    the picture; dots: points that are marked.
    """

    points: Mapping[str, Point]
    lines: tuple[Segment, ...] = ()
    dashed: tuple[Segment, ...] = ()
    circles: tuple[Segment, ...] = ()
    lengths: tuple[LengthLabel, ...] = ()
    angles: tuple[AngleLabel, ...] = ()
    right_angles: tuple[tuple[str, str, str], ...] = ()
    equal: tuple[tuple[Segment, ...], ...] = ()
    names: str = ""
    dots: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked, as something to measure: a length between 2 points, the angle at the middle one of 3, or the area
    or perimeter of a polygon."""

    what: Literal["length", "angle", "area", "perimeter"]
    points: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """numbers: the given values, which tell problems of one kind apart; question: without its picture, point names in
    braces: "Find $m\\angle {A}{B}{C}$."."""

    numbers: tuple[int, ...]
    figure: Figure
    asked: Asked
    question: str
    answer: Surd


def measure(points: Mapping[str, Point], asked: Asked) -> float:
    """What a ruler or a protractor reads off ``points``; the area by the shoelace formula."""
    places = [points[name] for name in asked.points]
    if asked.what == "length":
        return math.dist(*places)
    if asked.what == "angle":
        return angle_between(*places)
    around = list(zip(places, places[1:] + places[:1], strict=True))
    if asked.what == "perimeter":
        return sum(math.dist(start, end) for start, end in around)
    return abs(sum(start[0] * end[1] - end[0] * start[1] for start, end in around)) / 2


def angle_between(arm: Point, at: Point, other: Point) -> float:
    """Degrees from 0 to 180 at ``at`` between the ways to ``arm`` and ``other``."""
    first = math.atan2(arm[1] - at[1], arm[0] - at[0])
    second = math.atan2(other[1] - at[1], other[0] - at[0])
    turn = abs(math.degrees(first - second)) % 360
    return min(turn, 360 - turn)


def polygon(names: str) -> tuple[Segment, ...]:
    """The sides of the closed polygon through the named points."""
    return tuple(zip(names, names[1:] + names[:1], strict=True))


def chain(*segments: str) -> tuple[Segment, ...]:
    """Segments written as two letters each: "AB"."""
    return tuple((text[0], text[1]) for text in segments)


def sides(**labels: object) -> tuple[LengthLabel, ...]:
    """Labels of segments written as two letters: ``sides(AB=7, BC="x")``."""
    return tuple(LengthLabel(ends=(name[0], name[1]), text=str(text)) for name, text in labels.items())


def corners(**labels: object) -> tuple[AngleLabel, ...]:
    """Labels of angles written as three letters, the corner in the middle: ``corners(ABC=60)``."""
    return tuple(AngleLabel(at=name[1], arms=(name[0], name[2]), text=str(text)) for name, text in labels.items())


def polar(degrees: float, radius: float = 1.0, centre: Point = (0.0, 0.0)) -> Point:
    """The point at ``radius`` from ``centre`` in the direction ``degrees``, counter-clockwise from the right."""
    turn = math.radians(degrees)
    return (centre[0] + radius * math.cos(turn), centre[1] + radius * math.sin(turn))


def rectangle(width: float, height: float) -> dict[str, Point]:
    """Corners A, B, C, D, counter-clockwise from the lower left."""
    return {"A": (0, 0), "B": (width, 0), "C": (width, height), "D": (0, height)}


def triangle(a: float, b: float, c: float) -> dict[str, Point]:
    """Corners A, B, C of the triangle with BC = a, CA = b, AB = c, AB lying at the bottom."""
    along = (b * b + c * c - a * a) / (2 * c)
    return {"A": (0, 0), "B": (c, 0), "C": (along, math.sqrt(b * b - along * along))}


def angled_triangle(at_a: float, at_b: float) -> dict[str, Point]:
    """Corners of a triangle with these angles at A and B."""
    at_c = math.radians(180 - at_a - at_b)
    across = math.sin(math.radians(at_b)) / math.sin(at_c)
    return {"A": (0, 0), "B": (1, 0), "C": polar(at_a, across)}


def parallelogram(angle: int, base: float = 1.5, side: float = 1.0) -> dict[str, Point]:
    """Corners A, B, C, D of a parallelogram with ``angle`` at A."""
    far = polar(angle, side)
    return {"A": (0.0, 0.0), "B": (base, 0.0), "C": (base + far[0], far[1]), "D": far}


def middle(first: Point, second: Point, part: float = 0.5) -> Point:
    """The point that lies ``part`` of the way from ``first`` to ``second``."""
    return (first[0] + part * (second[0] - first[0]), first[1] + part * (second[1] - first[1]))


def spread(places: Sequence[Point]) -> tuple[Point, Point]:
    """The lower left and the upper right corner of the box around ``places``."""
    across, up = zip(*places, strict=True)
    return (min(across), min(up)), (max(across), max(up))


def two_lengths(rng: random.Random, low: int = 4, high: int = 20, most: float = 2.2) -> tuple[int, int]:
    """Two different lengths, neither more than ``most`` times the other."""
    while True:
        first, second = rng.randint(low, high), rng.randint(low, high)
        if first != second and max(first, second) <= most * min(first, second):
            return first, second
