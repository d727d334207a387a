r"""The line of work that leads to a problem's answer, for supervised fine-tuning: "180-80-55. Answer: \boxed{45}".

Writing the numbers down before the answer splits the problem in two, reading and reckoning, so that a small model
learns from fewer rows. The text follows from the picture alone: numbers of equal standing come largest first. Kinds
whose answer is read off need none. Knows kinds by their names and numbers, no figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TERMS: Mapping[str, str] = {
    "segment_double": "2*{0}",
    "diameter": "2*{0}",
    "midline": "2*{0}",
    "supplementary_angle": "180-{0}",
    "complementary_angle": "90-{0}",
    "neighbouring_angle": "180-{0}",
    "apex_angle": "180-2*{0}",
    "central_angle": "2*{0}",
    "triangle_equal_perimeter": "3*{0}",
    "square_perimeter": "4*{0}",
    "pentagon_perimeter": "5*{0}",
    "hexagon_perimeter": "6*{0}",
    "octagon_perimeter": "8*{0}",
    "segment_sum": "{0}+{1}",
    "angle_sum": "{0}+{1}",
    "straight_angle": "180-{0}-{1}",
    "triangle_angle": "180-{0}-{1}",
    "exterior_angle": "{0}+{1}",
    "rectangle_perimeter": "2*({0}+{1})",
    "rectangle_area": "{0}*{1}",
    "triangle_perimeter": "{0}+{1}+{2}",
    "parallelogram_area": "{0}*{1}",
    "right_triangle_area": "{0}*{1}/2",
    "triangle_area": "{0}*{1}/2",
    "rhombus_area": "2*{0}*{1}",
    "trapezoid_midline": "({0}+{1})/2",
    "quadrilateral_angle": "360-{0}-{1}-{2}",
    "half_equilateral_hypotenuse": "2*{0}",
    "trapezoid_area": "({0}+{1})*{2}/2",
    "similar_triangles": "{2}*({0}+{1})/{0}",
    "l_shape_area": "{0}*{1}-{2}*{3}",
}
"""Kind -> its answer in terms of the given numbers."""

SQUARES: Mapping[str, str] = {
    "hypotenuse": "{0}^2+{1}^2",
    "rectangle_diagonal": "{0}^2+{1}^2",
    "tangent": "{0}^2+{1}^2",
    "leg": "{1}^2-{0}^2",
    "half_chord": "{0}^2-{1}^2",
}
"""Kind -> the square of its answer."""

STANDING: Mapping[str, tuple[tuple[int, ...], ...]] = {
    "leg": (),
    "half_chord": (),
    "similar_triangles": (),
    "trapezoid_area": ((0, 1),),
    "l_shape_area": ((0, 1), (2, 3)),
}
"""Kind -> places of its numbers that are of equal standing; of all other kinds, all are."""


def terms(kind: str, numbers: Sequence[int]) -> str | None:
    """The reckoning without its result; None for kinds that need none."""
    pattern = TERMS.get(kind) or SQUARES.get(kind)
    if pattern is None:
        return None
    ordered = list(numbers)
    for places in STANDING.get(kind, (tuple(range(len(numbers))),)):
        for place, value in zip(places, sorted((numbers[place] for place in places), reverse=True), strict=True):
            ordered[place] = value
    return pattern.format(*ordered)


def solution(kind: str, numbers: Sequence[int], square: int, target: str) -> str:
    """The work and the target after it. square: of the answer, which kinds of ``SQUARES`` write down on the way."""
    reckoned = terms(kind, numbers)
    if reckoned is None:
        return target
    return f"{reckoned}={square}. {target}" if kind in SQUARES else f"{reckoned}. {target}"
