r"""Kinds of geometry problems of level 4: Pythagoras, special triangles, similar figures, sums of parts; radicals.

Each kind is a function of a random generator that gives a ``Problem``; the answer is exact (``Surd``). All figures are
in true proportions.
"""

from __future__ import annotations

import math
import random

from toolkits.data.geometry_easy import FIND_X
from toolkits.data.geometry_figure import (
    UNKNOWN,
    Asked,
    Figure,
    Point,
    Problem,
    Surd,
    chain,
    corners,
    middle,
    polygon,
    rectangle,
    sides,
    surd,
    triangle,
    two_lengths,
)

TRIPLES = ((3, 4, 5), (6, 8, 10), (9, 12, 15), (12, 16, 20), (15, 20, 25), (18, 24, 30), (8, 15, 17), (5, 12, 13))
"""Right triangles with whole sides: leg, leg, hypotenuse."""


def _legs(rng: random.Random) -> tuple[int, int]:
    """Legs of a right triangle: with a whole hypotenuse as often as not."""
    if rng.random() < 0.5:
        first, second, _ = rng.choice(TRIPLES)
        return (first, second) if rng.random() < 0.5 else (second, first)
    return two_lengths(rng, 2, 12)


def hypotenuse(rng: random.Random) -> Problem:
    """The longest side of a right triangle."""
    across, up = _legs(rng)
    return Problem(
        numbers=(across, up),
        figure=Figure(
            points={"A": (0, 0), "B": (across, 0), "C": (0, up)},
            lines=polygon("ABC"),
            lengths=sides(AB=across, CA=up, BC=UNKNOWN),
            right_angles=(("A", "B", "C"),),
        ),
        asked=Asked(what="length", points="BC"),
        question=FIND_X,
        answer=surd(across**2 + up**2),
    )


def leg(rng: random.Random) -> Problem:
    """A leg of a right triangle."""
    up, across = _legs(rng)
    longest = surd(across**2 + up**2)
    if longest.radicand != 1:  # a whole hypotenuse; the leg may be a root
        while True:
            hypotenuse_, up = rng.randint(4, 16), rng.randint(3, 14)
            if 1.15 * up < hypotenuse_ < 2.2 * up:
                break
        longest = Surd(factor=hypotenuse_)
    answer = surd(longest.factor**2 - up**2)
    return Problem(
        numbers=(up, longest.factor),
        figure=Figure(
            points={"A": (0.0, 0.0), "B": (answer.value, 0.0), "C": (0.0, float(up))},
            lines=polygon("ABC"),
            lengths=sides(CA=up, BC=longest.factor, AB=UNKNOWN),
            right_angles=(("A", "B", "C"),),
        ),
        asked=Asked(what="length", points="AB"),
        question=FIND_X,
        answer=answer,
    )


def rectangle_diagonal(rng: random.Random) -> Problem:
    """The diagonal of a rectangle."""
    width, height = _legs(rng)
    return Problem(
        numbers=(width, height),
        figure=Figure(
            points=rectangle(width, height),
            lines=(*polygon("ABCD"), ("A", "C")),
            lengths=sides(AB=width, BC=height, AC=UNKNOWN),
        ),
        asked=Asked(what="length", points="AC"),
        question="Find $x$ in the rectangle.",
        answer=surd(width**2 + height**2),
    )


def square_diagonal(rng: random.Random) -> Problem:
    """The diagonal of a square."""
    side = rng.randint(2, 30)
    return Problem(
        numbers=(side,),
        figure=Figure(
            points=rectangle(side, side),
            lines=(*polygon("ABCD"), ("A", "C")),
            lengths=sides(AB=side, AC=UNKNOWN),
        ),
        asked=Asked(what="length", points="AC"),
        question="Find $x$ in the square.",
        answer=surd(2, side),
    )


def equilateral_height(rng: random.Random) -> Problem:
    """The height of an equilateral triangle."""
    side = rng.randrange(4, 42, 2)
    points = triangle(side, side, side) | {"H": (side / 2, 0.0)}
    return Problem(
        numbers=(side,),
        figure=Figure(
            points=points,
            lines=chain("AH", "HB", "BC", "CA"),
            dashed=chain("CH"),
            lengths=sides(BC=side, CH=UNKNOWN),
            right_angles=(("H", "B", "C"),),
        ),
        asked=Asked(what="length", points="CH"),
        question="Find $x$ in the equilateral triangle.",
        answer=surd(3, side // 2),
    )


def half_equilateral(rng: random.Random) -> Problem:
    """The long leg of a right triangle with 60 degrees, from the short one."""
    short = rng.randint(2, 25)
    return _half_equilateral(short, asked="CA", answer=surd(3, short))


def half_equilateral_hypotenuse(rng: random.Random) -> Problem:
    """The hypotenuse of such a triangle, from the short leg."""
    short = rng.randint(2, 25)
    return _half_equilateral(short, asked="BC", answer=Surd(factor=2 * short))


def _half_equilateral(short: int, asked: str, answer: Surd) -> Problem:
    points = {"A": (0.0, 0.0), "B": (float(short), 0.0), "C": (0.0, short * math.sqrt(3))}
    return Problem(
        numbers=(short,),
        figure=Figure(
            points=points,
            lines=polygon("ABC"),
            lengths=sides(**{"AB": short, asked: UNKNOWN}),
            angles=corners(ABC=60),
            right_angles=(("A", "B", "C"),),
        ),
        asked=Asked(what="length", points=asked),
        question=FIND_X,
        answer=answer,
    )


def half_square(rng: random.Random) -> Problem:
    """The hypotenuse of a right triangle with 45 degrees."""
    side = rng.randint(2, 30)
    return Problem(
        numbers=(side,),
        figure=Figure(
            points={"A": (0, 0), "B": (side, 0), "C": (0, side)},
            lines=polygon("ABC"),
            lengths=sides(AB=side, BC=UNKNOWN),
            angles=corners(BCA=45),
            right_angles=(("A", "B", "C"),),
        ),
        asked=Asked(what="length", points="BC"),
        question=FIND_X,
        answer=surd(2, side),
    )


def tangent(rng: random.Random) -> Problem:
    """The way to a circle's centre from a point outside it, over the tangent and the radius."""
    radius, length = sorted(_legs(rng))
    points = {"O": (0.0, 0.0), "T": (0.0, float(radius)), "P": (float(length), float(radius))}
    return Problem(
        numbers=(radius, length),
        figure=Figure(
            points=points,
            lines=chain("OT", "TP", "OP"),
            circles=chain("OT"),
            lengths=sides(OT=radius, TP=length, OP=UNKNOWN),
            right_angles=(("T", "O", "P"),),
            dots="O",
        ),
        asked=Asked(what="length", points="OP"),
        question=FIND_X,
        answer=surd(radius**2 + length**2),
    )


def half_chord(rng: random.Random) -> Problem:
    """Half of a chord from the radius and the chord's distance from the centre."""
    if rng.random() < 0.5:
        first, second, radius = rng.choice(TRIPLES)
        distance = first if rng.random() < 0.5 else second
    else:
        radius = rng.randint(6, 20)
        distance = rng.randint(round(0.4 * radius), round(0.75 * radius))
    answer = surd(radius**2 - distance**2)
    half = answer.value
    points: dict[str, Point] = {"O": (0, 0), "M": (0, -distance), "A": (-half, -distance), "B": (half, -distance)}
    return Problem(
        numbers=(radius, distance),
        figure=Figure(
            points=points,
            lines=chain("AM", "MB", "OM", "OB"),
            circles=chain("OB"),
            lengths=sides(OB=radius, OM=distance, MB=UNKNOWN),
            right_angles=(("M", "A", "O"),),
            dots="O",
        ),
        asked=Asked(what="length", points="MB"),
        question=FIND_X,
        answer=answer,
    )


def trapezoid_area(rng: random.Random) -> Problem:
    """The mean of the parallel sides times the height."""
    while True:
        long, short = sorted(two_lengths(rng, 4, 16, most=2.5), reverse=True)
        height = rng.randint(3, 10)
        if (long + short) * height % 2 == 0 and 0.45 * long <= height <= 0.9 * long:
            break
    points = {"A": (0, 0), "B": (long, 0), "C": (short, height), "D": (0, height)}
    return Problem(
        numbers=(long, short, height),
        figure=Figure(
            points=points,
            lines=polygon("ABCD"),
            lengths=sides(AB=long, CD=short, DA=height),
            right_angles=(("A", "B", "D"), ("D", "A", "C")),
        ),
        asked=Asked(what="area", points="ABCD"),
        question="Find the area of the trapezoid.",
        answer=Surd(factor=(long + short) * height // 2),
    )


def similar_triangles(rng: random.Random) -> Problem:
    """A side of a triangle from the parallel to it: the two parts of another side and the parallel are given."""
    while True:
        upper, lower, parallel = rng.randint(2, 12), rng.randint(2, 12), rng.randint(3, 12)
        if parallel * lower % upper == 0 and 0.6 <= upper / lower <= 2 and 0.6 <= parallel / upper <= 1.5:
            break
    base = parallel * (upper + lower) // upper
    points = triangle(upper + lower, 0.95 * (upper + lower), base)
    points |= {"D": middle(points["C"], points["B"], upper / (upper + lower))}
    points |= {"E": middle(points["C"], points["A"], upper / (upper + lower))}
    return Problem(
        numbers=(upper, lower, parallel),
        figure=Figure(
            points=points,
            lines=chain("AB", "CD", "DB", "CE", "EA", "DE"),
            lengths=sides(CD=upper, DB=lower, DE=parallel, AB=UNKNOWN),
        ),
        asked=Asked(what="length", points="AB"),
        question=r"Find $x$ if the lines are parallel.",
        answer=Surd(factor=base),
    )


def l_shape_area(rng: random.Random) -> Problem:
    """A rectangle without a corner."""
    width, height = rng.randint(6, 14), rng.randint(6, 14)
    cut, drop = rng.randint(width // 3 + 1, width // 2), rng.randint(height // 3 + 1, height // 2)
    points = rectangle(width, height)
    points |= {"C": (width, height - drop), "D": (width - cut, height - drop), "E": (width - cut, height)}
    points |= {"F": (0, height)}
    return Problem(
        numbers=(width, height, cut, drop),
        figure=Figure(
            points=points,
            lines=polygon("ABCDEF"),
            lengths=sides(AB=width, FA=height, CD=cut, DE=drop),
            right_angles=(("A", "B", "F"), ("D", "C", "E")),
        ),
        asked=Asked(what="area", points="ABCDEF"),
        question="Find the area of the figure.",
        answer=Surd(factor=width * height - cut * drop),
    )


LEVEL_4 = (
    square_diagonal,
    half_square,
    equilateral_height,
    half_equilateral,
    half_equilateral_hypotenuse,
    hypotenuse,
    leg,
    rectangle_diagonal,
    tangent,
    half_chord,
    trapezoid_area,
    similar_triangles,
    l_shape_area,
)
