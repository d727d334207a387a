r"""Kinds of geometry problems about regular polygons: one side is given, the perimeter is asked. All are of level 2."""

from __future__ import annotations

import random

from toolkits.data.geometry_figure import Asked, Figure, Problem, Surd, polar, polygon, sides


def _perimeter(rng: random.Random, corners: int, shape: str) -> Problem:
    """All sides equal, one given."""
    side = rng.randint(2, 30)
    names = "ABCDEFGH"[:corners]
    turn = 360 / corners
    radius = side / (2 * polar(90 - turn / 2)[0])
    points = {name: polar(index * turn - turn / 2 - 90, radius) for index, name in enumerate(names)}
    return Problem(
        numbers=(side,),
        figure=Figure(points=points, lines=polygon(names), lengths=sides(AB=side), equal=(polygon(names),)),
        asked=Asked(what="perimeter", points=names),
        question=f"Find the perimeter of the {shape}.",
        answer=Surd(factor=corners * side),
    )


def triangle_equal_perimeter(rng: random.Random) -> Problem:
    """The perimeter of an equilateral triangle."""
    return _perimeter(rng, 3, "triangle")


def square_perimeter(rng: random.Random) -> Problem:
    """The perimeter of a square."""
    return _perimeter(rng, 4, "square")


def pentagon_perimeter(rng: random.Random) -> Problem:
    """The perimeter of a regular pentagon."""
    return _perimeter(rng, 5, "pentagon")


def hexagon_perimeter(rng: random.Random) -> Problem:
    """The perimeter of a regular hexagon."""
    return _perimeter(rng, 6, "hexagon")


def octagon_perimeter(rng: random.Random) -> Problem:
    """The perimeter of a regular octagon."""
    return _perimeter(rng, 8, "octagon")


REGULAR = (triangle_equal_perimeter, square_perimeter, pentagon_perimeter, hexagon_perimeter, octagon_perimeter)
