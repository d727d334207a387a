r"""Kinds of geometry problems of level 3: two or three numbers of the picture are added, subtracted or multiplied.

Each kind is a function of a random generator that gives a ``Problem``; the answer is computed in integers. All figures
are in true proportions. Angles are multiples of five degrees.
"""

from __future__ import annotations

import random

from toolkits.data.geometry_easy import FIND_X
from toolkits.data.geometry_figure import (
    UNKNOWN,
    Asked,
    Figure,
    Problem,
    Surd,
    angled_triangle,
    chain,
    corners,
    polar,
    polygon,
    rectangle,
    sides,
    triangle,
    two_lengths,
)


def segment_sum(rng: random.Random) -> Problem:
    """A segment from its two parts."""
    first, second = two_lengths(rng, 3, 25)
    return Problem(
        numbers=(first, second),
        figure=Figure(
            points={"A": (0, 0), "B": (first, 0), "C": (first + second, 0)},
            lines=chain("AB", "BC"),
            lengths=sides(AB=first, BC=second),
            names="ABC",
            dots="ABC",
        ),
        asked=Asked(what="length", points="AC"),
        question="Find ${A}{C}$.",
        answer=Surd(factor=first + second),
    )


def angle_sum(rng: random.Random) -> Problem:
    """An angle from its two parts."""
    first, second = rng.randrange(30, 75, 5), rng.randrange(30, 75, 5)
    points = {"O": (0.0, 0.0), "A": polar(0), "B": polar(first), "C": polar(first + second)}
    return Problem(
        numbers=(first, second),
        figure=Figure(
            points=points, lines=chain("OA", "OB", "OC"), angles=corners(AOB=first, BOC=second), names="OABC"
        ),
        asked=Asked(what="angle", points="AOC"),
        question=r"Find $m\angle {A}{O}{C}$.",
        answer=Surd(factor=first + second),
    )


def straight_angle(rng: random.Random) -> Problem:
    """The third of three angles at a line."""
    first, second = rng.randrange(40, 75, 5), rng.randrange(40, 75, 5)
    points = {"O": (0.0, 0.0), "A": polar(0), "D": polar(180), "B": polar(first), "C": polar(first + second)}
    return Problem(
        numbers=(first, second),
        figure=Figure(points=points, lines=chain("AD", "OB", "OC"), angles=corners(AOB=first, BOC=second, COD=UNKNOWN)),
        asked=Asked(what="angle", points="COD"),
        question=FIND_X,
        answer=Surd(factor=180 - first - second),
    )


def _two_angles(rng: random.Random) -> tuple[int, int]:
    """Two angles of a triangle whose third is 40 to 100 degrees."""
    while True:
        first, second = rng.randrange(35, 95, 5), rng.randrange(35, 95, 5)
        if 40 <= 180 - first - second <= 100:
            return first, second


def triangle_angle(rng: random.Random) -> Problem:
    """The third angle of a triangle."""
    first, second = _two_angles(rng)
    return Problem(
        numbers=(first, second),
        figure=Figure(
            points=angled_triangle(first, second),
            lines=polygon("ABC"),
            angles=corners(CAB=first, ABC=second, BCA=UNKNOWN),
        ),
        asked=Asked(what="angle", points="BCA"),
        question="Find $x$ in the triangle.",
        answer=Surd(factor=180 - first - second),
    )


def exterior_angle(rng: random.Random) -> Problem:
    """The angle beside a triangle from the two that are not next to it."""
    first, second = _two_angles(rng)
    points = angled_triangle(first, 180 - first - second) | {"D": (1.7, 0.0)}
    return Problem(
        numbers=(first, second),
        figure=Figure(
            points=points,
            lines=chain("AD", "BC", "CA"),
            angles=corners(CAB=first, BCA=second, CBD=UNKNOWN),
        ),
        asked=Asked(what="angle", points="CBD"),
        question=FIND_X,
        answer=Surd(factor=first + second),
    )


def rectangle_perimeter(rng: random.Random) -> Problem:
    """Twice the sum of the sides."""
    width, height = two_lengths(rng, 3, 20)
    return Problem(
        numbers=(width, height),
        figure=Figure(points=rectangle(width, height), lines=polygon("ABCD"), lengths=sides(AB=width, BC=height)),
        asked=Asked(what="perimeter", points="ABCD"),
        question="Find the perimeter of the rectangle.",
        answer=Surd(factor=2 * (width + height)),
    )


def rectangle_area(rng: random.Random) -> Problem:
    """The product of the sides."""
    width, height = two_lengths(rng, 2, 15)
    return Problem(
        numbers=(width, height),
        figure=Figure(points=rectangle(width, height), lines=polygon("ABCD"), lengths=sides(AB=width, BC=height)),
        asked=Asked(what="area", points="ABCD"),
        question="Find the area of the rectangle.",
        answer=Surd(factor=width * height),
    )


def triangle_perimeter(rng: random.Random) -> Problem:
    """The sum of three different sides."""
    while True:
        a, b, c = (rng.randint(5, 20) for _ in range(3))
        if len({a, b, c}) == 3 and 2 * max(a, b, c) <= 0.85 * (a + b + c) and 2 * min(a, b, c) >= max(a, b, c):
            break
    return Problem(
        numbers=(a, b, c),
        figure=Figure(points=triangle(a, b, c), lines=polygon("ABC"), lengths=sides(BC=a, CA=b, AB=c)),
        asked=Asked(what="perimeter", points="ABC"),
        question="Find the perimeter of the triangle.",
        answer=Surd(factor=a + b + c),
    )


def parallelogram_area(rng: random.Random) -> Problem:
    """Base times height."""
    base, height = two_lengths(rng, 3, 12, most=2.0)
    lean = 0.4 * height
    points = rectangle(base, height)
    points |= {"C": (base + lean, height), "D": (lean, height), "H": (lean, 0.0)}
    return Problem(
        numbers=(base, height),
        figure=Figure(
            points=points,
            lines=polygon("ABCD"),
            dashed=chain("DH"),
            lengths=sides(CD=base, DH=height),
            right_angles=(("H", "B", "D"),),
        ),
        asked=Asked(what="area", points="ABCD"),
        question="Find the area of the parallelogram.",
        answer=Surd(factor=base * height),
    )


def right_triangle_area(rng: random.Random) -> Problem:
    """Half the product of the legs."""
    while True:
        across, up = two_lengths(rng, 3, 14)
        if across * up % 2 == 0:
            break
    return Problem(
        numbers=(across, up),
        figure=Figure(
            points={"A": (0, 0), "B": (across, 0), "C": (0, up)},
            lines=polygon("ABC"),
            lengths=sides(AB=across, CA=up),
            right_angles=(("A", "B", "C"),),
        ),
        asked=Asked(what="area", points="ABC"),
        question="Find the area of the triangle.",
        answer=Surd(factor=across * up // 2),
    )


def triangle_area(rng: random.Random) -> Problem:
    """Half of base times height."""
    while True:
        base, height = two_lengths(rng, 4, 14, most=1.8)
        if base * height % 2 == 0:
            break
    foot = rng.uniform(0.3, 0.7) * base
    points = {"A": (0.0, 0.0), "B": (float(base), 0.0), "C": (foot, float(height)), "H": (foot, 0.0)}
    return Problem(
        numbers=(base, height),
        figure=Figure(
            points=points,
            lines=polygon("ABC"),
            dashed=chain("CH"),
            lengths=sides(AB=base, CH=height),
            right_angles=(("H", "B", "C"),),
        ),
        asked=Asked(what="area", points="ABC"),
        question="Find the area of the triangle.",
        answer=Surd(factor=base * height // 2),
    )


def rhombus_area(rng: random.Random) -> Problem:
    """Four right triangles, whose legs are given."""
    across, up = two_lengths(rng, 3, 10, most=1.8)
    points = {"A": (-across, 0), "B": (0, -up), "C": (across, 0), "D": (0, up), "O": (0, 0)}
    return Problem(
        numbers=(across, up),
        figure=Figure(
            points=points,
            lines=(*polygon("ABCD"), *chain("OA", "OB", "OC", "OD")),
            lengths=sides(OC=across, OD=up),
            right_angles=(("O", "A", "B"),),
            equal=(polygon("ABCD"),),
        ),
        asked=Asked(what="area", points="ABCD"),
        question="Find the area of the rhombus.",
        answer=Surd(factor=2 * across * up),
    )


def trapezoid_midline(rng: random.Random) -> Problem:
    """The mean of the two parallel sides."""
    while True:
        long, short = sorted(two_lengths(rng, 4, 24, most=3.0), reverse=True)
        if (long + short) % 2 == 0:
            break
    left, height = rng.uniform(0.2, 0.8) * (long - short), 0.75 * long
    points = {"A": (0.0, 0.0), "B": (float(long), 0.0), "C": (left + short, height), "D": (left, height)}
    points |= {"M": (left / 2, height / 2), "N": ((left + short + long) / 2, height / 2)}
    return Problem(
        numbers=(long, short),
        figure=Figure(
            points=points,
            lines=chain("AB", "CD", "AM", "MD", "BN", "NC", "MN"),
            lengths=sides(AB=long, CD=short, MN=UNKNOWN),
            equal=(chain("AM", "MD"), chain("BN", "NC")),
        ),
        asked=Asked(what="length", points="MN"),
        question="Find $x$ in the trapezoid.",
        answer=Surd(factor=(long + short) // 2),
    )


def quadrilateral_angle(rng: random.Random) -> Problem:
    """The fourth angle of a quadrilateral."""
    while True:
        at_a, at_b, at_c = (rng.randrange(65, 125, 5) for _ in range(3))
        at_d = 360 - at_a - at_b - at_c
        if not 60 <= at_d <= 120:
            continue
        # AB = 1, AD = 0.9, and C is where the ways from B and from D cross.
        b, d = (1.0, 0.0), polar(at_a, 0.9)
        from_b, from_d = polar(180 - at_b), polar(at_a - 180 + at_d)
        cross = from_b[0] * from_d[1] - from_b[1] * from_d[0]
        along = ((d[0] - b[0]) * from_d[1] - (d[1] - b[1]) * from_d[0]) / cross
        if 0.6 <= along <= 1.5:
            break
    points = {"A": (0.0, 0.0), "B": b, "C": (b[0] + along * from_b[0], b[1] + along * from_b[1]), "D": d}
    return Problem(
        numbers=(at_a, at_b, at_c),
        figure=Figure(points=points, lines=polygon("ABCD"), angles=corners(DAB=at_a, ABC=at_b, BCD=at_c, CDA=UNKNOWN)),
        asked=Asked(what="angle", points="CDA"),
        question=FIND_X,
        answer=Surd(factor=at_d),
    )


LEVEL_3 = (
    segment_sum,
    angle_sum,
    straight_angle,
    triangle_angle,
    exterior_angle,
    rectangle_perimeter,
    rectangle_area,
    triangle_perimeter,
    parallelogram_area,
    right_triangle_area,
    triangle_area,
    rhombus_area,
    trapezoid_midline,
    quadrilateral_angle,
)
