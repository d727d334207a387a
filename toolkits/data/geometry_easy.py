r"""Kinds of geometry problems that need one step: level 1 is read off the picture, level 2 takes one number on.

Each kind is a function of a random generator that gives a ``Problem``; the answer is computed in integers. Lengths are
2 to 30, angles whole degrees. All figures are in true proportions.
"""

from __future__ import annotations

import random

from toolkits.data.geometry_figure import (
    UNKNOWN,
    Asked,
    Figure,
    Problem,
    Surd,
    angled_triangle,
    chain,
    corners,
    middle,
    parallelogram,
    polar,
    polygon,
    rectangle,
    sides,
    triangle,
    two_lengths,
)
from toolkits.data.geometry_regular import REGULAR

FIND_X = "Find $x$."


# level 1: the answer stands in the picture


def rectangle_side(rng: random.Random) -> Problem:
    """The side opposite to a given one."""
    width, height = two_lengths(rng)
    opposite = rng.random() < 0.5
    labels = sides(AB=width, BC=height, CD=UNKNOWN) if opposite else sides(AB=width, BC=height, DA=UNKNOWN)
    return Problem(
        numbers=(width, height),
        figure=Figure(points=rectangle(width, height), lines=polygon("ABCD"), lengths=labels),
        asked=Asked(what="length", points="CD" if opposite else "DA"),
        question="Find $x$ in the rectangle.",
        answer=Surd(factor=width if opposite else height),
    )


def isosceles_leg(rng: random.Random) -> Problem:
    """A leg of an isosceles triangle whose other leg is given."""
    leg, base = two_lengths(rng, most=1.7)
    return Problem(
        numbers=(leg, base),
        figure=Figure(
            points=triangle(leg, leg, base),
            lines=polygon("ABC"),
            lengths=sides(AB=base, BC=leg, CA=UNKNOWN),
            equal=(chain("BC", "CA"),),
        ),
        asked=Asked(what="length", points="CA"),
        question=FIND_X,
        answer=Surd(factor=leg),
    )


def kite_side(rng: random.Random) -> Problem:
    """A side of a kite from the side that is equal to it."""
    short, long = sorted(two_lengths(rng, most=2.0))
    half = 0.8 * short
    below, above = (short**2 - half**2) ** 0.5, (long**2 - half**2) ** 0.5
    points = {"A": (0, -below), "B": (half, 0), "C": (0, above), "D": (-half, 0)}
    asks_short = rng.random() < 0.5
    labels = sides(AB=short, BC=long, DA=UNKNOWN) if asks_short else sides(AB=short, BC=long, CD=UNKNOWN)
    return Problem(
        numbers=(short, long),
        figure=Figure(
            points=points,
            lines=polygon("ABCD"),
            lengths=labels,
            equal=(chain("AB", "DA"), chain("BC", "CD")),
        ),
        asked=Asked(what="length", points="DA" if asks_short else "CD"),
        question=FIND_X,
        answer=Surd(factor=short if asks_short else long),
    )


def circle_radius(rng: random.Random) -> Problem:
    """A radius from another one."""
    radius = rng.randint(5, 30)
    turn = rng.choice([90, 120, 150])
    points = {"O": (0.0, 0.0), "A": polar(0, radius), "B": polar(turn, radius)}
    return Problem(
        numbers=(radius,),
        figure=Figure(
            points=points,
            lines=chain("OA", "OB"),
            circles=chain("OA"),
            lengths=sides(OA=radius, OB=UNKNOWN),
            dots="O",
        ),
        asked=Asked(what="length", points="OB"),
        question="Find $x$ in the circle.",
        answer=Surd(factor=radius),
    )


def vertical_angle(rng: random.Random) -> Problem:
    """The angle across the crossing of two lines."""
    given = rng.choice([*range(35, 81), *range(100, 146)])
    points = {"O": (0.0, 0.0), "A": polar(0), "C": polar(180), "B": polar(given), "D": polar(180 + given)}
    return Problem(
        numbers=(given,),
        figure=Figure(points=points, lines=chain("AC", "BD"), angles=corners(AOB=given, COD=UNKNOWN)),
        asked=Asked(what="angle", points="COD"),
        question=FIND_X,
        answer=Surd(factor=given),
    )


def opposite_angle(rng: random.Random) -> Problem:
    """The opposite angle of a parallelogram."""
    given = rng.choice([*range(45, 81), *range(100, 136)])
    return Problem(
        numbers=(given,),
        figure=Figure(points=parallelogram(given), lines=polygon("ABCD"), angles=corners(DAB=given, BCD=UNKNOWN)),
        asked=Asked(what="angle", points="BCD"),
        question="Find $x$ in the parallelogram.",
        answer=Surd(factor=given),
    )


def base_angle(rng: random.Random) -> Problem:
    """The other base angle of an isosceles triangle."""
    given = rng.randint(35, 70)
    return Problem(
        numbers=(given,),
        figure=Figure(
            points=angled_triangle(given, given),
            lines=polygon("ABC"),
            angles=corners(CAB=given, ABC=UNKNOWN),
            equal=(chain("BC", "CA"),),
        ),
        asked=Asked(what="angle", points="ABC"),
        question=FIND_X,
        answer=Surd(factor=given),
    )


# level 2: one number and a constant


def segment_double(rng: random.Random) -> Problem:
    """A segment from its half."""
    half = rng.randint(3, 30)
    return Problem(
        numbers=(half,),
        figure=Figure(
            points={"A": (0, 0), "M": (half, 0), "B": (2 * half, 0)},
            lines=chain("AM", "MB"),
            lengths=sides(AM=half),
            equal=(chain("AM", "MB"),),
            names="AMB",
            dots="AMB",
        ),
        asked=Asked(what="length", points="AB"),
        question="Find ${A}{B}$.",
        answer=Surd(factor=2 * half),
    )


def diameter(rng: random.Random) -> Problem:
    """A diameter from a radius."""
    radius = rng.randint(3, 30)
    points = {"O": (0.0, 0.0), "A": (-radius, 0.0), "B": (radius, 0.0), "C": polar(rng.choice([60, 90, 120]), radius)}
    return Problem(
        numbers=(radius,),
        figure=Figure(
            points=points,
            lines=chain("OA", "OB", "OC"),
            circles=chain("OA"),
            lengths=sides(OC=radius),
            names="AB",
            dots="O",
        ),
        asked=Asked(what="length", points="AB"),
        question="Find ${A}{B}$ in the circle.",
        answer=Surd(factor=2 * radius),
    )


def midline(rng: random.Random) -> Problem:
    """The side of a triangle from the segment between the midpoints of the two others."""
    half = rng.randint(3, 25)
    height, lean = rng.uniform(1.4, 1.9) * half, rng.uniform(0.5, 1.5) * half
    points = {"A": (0.0, 0.0), "B": (2.0 * half, 0.0), "C": (lean, height)}
    points |= {"M": middle(points["A"], points["C"]), "N": middle(points["B"], points["C"])}
    return Problem(
        numbers=(half,),
        figure=Figure(
            points=points,
            lines=chain("AB", "AM", "MC", "BN", "NC", "MN"),
            lengths=sides(MN=half, AB=UNKNOWN),
            equal=(chain("AM", "MC"), chain("BN", "NC")),
        ),
        asked=Asked(what="length", points="AB"),
        question=FIND_X,
        answer=Surd(factor=2 * half),
    )


def supplementary_angle(rng: random.Random) -> Problem:
    """The other angle at a line."""
    given = rng.choice([*range(35, 81), *range(100, 146)])
    points = {"O": (0.0, 0.0), "A": (1.0, 0.0), "C": (-1.0, 0.0), "B": polar(given)}
    return Problem(
        numbers=(given,),
        figure=Figure(points=points, lines=chain("AC", "OB"), angles=corners(AOB=given, BOC=UNKNOWN)),
        asked=Asked(what="angle", points="BOC"),
        question=FIND_X,
        answer=Surd(factor=180 - given),
    )


def complementary_angle(rng: random.Random) -> Problem:
    """The other part of a right angle."""
    given = rng.randint(30, 60)
    points = {"O": (0.0, 0.0), "A": (1.0, 0.0), "C": (0.0, 1.0), "B": polar(given)}
    return Problem(
        numbers=(given,),
        figure=Figure(
            points=points,
            lines=chain("OA", "OB", "OC"),
            angles=corners(AOB=given, BOC=UNKNOWN),
            right_angles=(("O", "A", "C"),),
        ),
        asked=Asked(what="angle", points="BOC"),
        question=FIND_X,
        answer=Surd(factor=90 - given),
    )


def neighbouring_angle(rng: random.Random) -> Problem:
    """The neighbouring angle of a parallelogram."""
    given = rng.choice([*range(45, 81), *range(100, 136)])
    return Problem(
        numbers=(given,),
        figure=Figure(points=parallelogram(given), lines=polygon("ABCD"), angles=corners(DAB=given, ABC=UNKNOWN)),
        asked=Asked(what="angle", points="ABC"),
        question="Find $x$ in the parallelogram.",
        answer=Surd(factor=180 - given),
    )


def apex_angle(rng: random.Random) -> Problem:
    """The angle between the equal sides of an isosceles triangle from one of the two others."""
    given = rng.randint(35, 70)
    return Problem(
        numbers=(given,),
        figure=Figure(
            points=angled_triangle(given, given),
            lines=polygon("ABC"),
            angles=corners(CAB=given, BCA=UNKNOWN),
            equal=(chain("BC", "CA"),),
        ),
        asked=Asked(what="angle", points="BCA"),
        question=FIND_X,
        answer=Surd(factor=180 - 2 * given),
    )


def central_angle(rng: random.Random) -> Problem:
    """The angle at a circle's centre from the one at its rim over the same chord."""
    given = rng.randint(35, 72)
    points = {"O": (0.0, 0.0), "A": polar(-90 - given), "B": polar(-90 + given), "C": polar(90)}
    return Problem(
        numbers=(given,),
        figure=Figure(
            points=points,
            lines=chain("OA", "OB", "CA", "CB"),
            circles=chain("OA"),
            angles=corners(ACB=given, AOB=UNKNOWN),
            dots="O",
        ),
        asked=Asked(what="angle", points="AOB"),
        question="Find $x$ in the circle.",
        answer=Surd(factor=2 * given),
    )


LEVEL_1 = (rectangle_side, isosceles_leg, kite_side, circle_radius, vertical_angle, opposite_angle, base_angle)
LEVEL_2 = (
    segment_double,
    diameter,
    midline,
    supplementary_angle,
    complementary_angle,
    neighbouring_angle,
    apex_angle,
    central_angle,
    *REGULAR,
)
