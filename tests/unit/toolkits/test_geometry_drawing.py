"""Drawings: in true proportions, labels in free places beside what they belong to, legible at the picture's size."""

from __future__ import annotations

import math
import random
from itertools import combinations

import numpy as np
import pytest

from toolkits.data import geometry_drawing as drawing
from toolkits.data.geometry_drawing import Crowded, Drawing, draw, draw_lines, sector
from toolkits.data.geometry_figure import Figure, Point, chain, corners, polygon, rectangle, sides
from toolkits.data.geometry_tables import KINDS

SIDE = 140


def drawn(kind: str, side: int = SIDE, count: int = 6) -> list[tuple[Figure, Drawing]]:
    """Some drawings of a kind; those without room are passed over, as the tables do."""
    rng = random.Random(kind)
    found: list[tuple[Figure, Drawing]] = []
    for _ in range(400):
        figure = KINDS[kind](rng).figure
        try:
            found.append((figure, draw(figure, {name: name for name in figure.points}, side, rng, rng.randrange(8))))
        except Crowded:
            continue
        if len(found) == count:
            return found
    raise AssertionError(f"{kind}: {len(found)} of {count} drawings had room in 400")


def centre(box: tuple[int, int, int, int]) -> Point:
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def apart(place: Point, start: Point, end: Point) -> float:
    """Distance to a segment, by trying 400 of its points."""
    parts = [index / 400 for index in range(401)]
    return min(
        math.dist(place, (start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1]))) for t in parts
    )


@pytest.mark.parametrize("kind", KINDS)
def test_labels_touch_nothing_and_are_whole(kind: str) -> None:
    for figure, made in drawn(kind):
        lines = np.asarray(draw_lines(figure, made.points, SIDE)) < 250
        text = (np.asarray(made.image) < 250) & ~lines
        boxes = [label.box for label in made.labels]
        assert len(boxes) == len(figure.lengths) + len(figure.angles) + len(figure.names)
        for left, top, right, bottom in boxes:
            assert left >= 0 and top >= 0 and right <= SIDE and bottom <= SIDE
            assert not lines[top:bottom, left:right].any(), "a line runs through a label"
            assert text[top:bottom, left:right].sum() >= 8, "a label is empty"
            text[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        assert not text.any(), "ink of a label lies outside of its box"
        for first, second in combinations(boxes, 2):
            beside = first[2] + 7 <= second[0] or second[2] + 7 <= first[0]
            assert beside or first[3] <= second[1] or second[3] <= first[1], "two labels read as one"


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_in_true_proportions_and_inside(kind: str) -> None:
    for figure, made in drawn(kind):
        pairs = [pair for pair in combinations(figure.points, 2) if math.dist(*(figure.points[n] for n in pair)) > 1e-9]
        scales = [
            math.dist(*(made.points[name] for name in pair)) / math.dist(*(figure.points[name] for name in pair))
            for pair in pairs
        ]
        assert max(scales) / min(scales) == pytest.approx(1, abs=1e-9)
        assert all(0 < x < SIDE and 0 < y < SIDE for x, y in made.points.values())
        ink = np.argwhere(np.asarray(made.image) < 128)
        assert max(np.ptp(ink[:, 0]), np.ptp(ink[:, 1])) > SIDE / 2, "drawn too small"


@pytest.mark.parametrize("kind", KINDS)
def test_each_label_belongs_to_the_nearest_thing(kind: str) -> None:
    for figure, made in drawn(kind):
        labels = iter(made.labels)
        for angle in figure.angles:
            at = made.points[angle.at]
            start, extent = sector(at, *(made.points[name] for name in angle.arms))
            x, y = centre(next(labels).box)
            assert 0 < (math.degrees(math.atan2(y - at[1], x - at[0])) - start) % 360 < extent
            others = {other.at for other in figure.angles} - {angle.at}
            assert all(math.dist((x, y), at) < math.dist((x, y), made.points[other]) for other in others)
        segments = {frozenset(segment) for segment in (*figure.lines, *figure.dashed)}
        for length in figure.lengths:
            place = centre(next(labels).box)
            own = apart(place, *(made.points[name] for name in length.ends))
            for other in segments - {frozenset(length.ends)}:
                assert own < apart(place, *(made.points[name] for name in other)), length
        for name in figure.names:
            place = centre(next(labels).box)
            assert min(made.points, key=lambda other: math.dist(place, made.points[other])) == name


def test_labels_stand_on_the_lattice() -> None:
    for kind in ("rectangle_area", "triangle_angle", "segment_sum"):
        for _, made in drawn(kind):
            lefts = {label.box[0] % drawing.STEP for label in made.labels}
            rows = {(label.box[1] // drawing.ROW, (label.box[3] - 1) // drawing.ROW) for label in made.labels}
            assert lefts == {0} and all(first == last for first, last in rows), "a digit stands in two rows of patches"


@pytest.mark.parametrize("side", [168, 224])
def test_larger_pictures(side: int) -> None:
    for kind in ("similar_triangles", "l_shape_area", "half_chord"):
        assert {made.image.size for _, made in drawn(kind, side, 2)} == {(side, side)}


def test_positions_differ() -> None:
    pictures = {made.image.tobytes() for _, made in drawn("square_perimeter", count=20)}
    assert len(pictures) == 20


def test_an_angle_is_not_labelled_behind_a_line() -> None:
    """The angle at C is sharp: its number fits between the arms only beyond the base, where it would be misread."""
    figure = Figure(
        points={"A": (0.0, 0.0), "B": (0.5, 0.0), "C": (0.25, 0.45), "D": (0.0, -2.0), "E": (2.0, 0.0)},
        lines=(*polygon("ABC"), *chain("AD", "BE")),
        angles=corners(ACB=58),
    )
    with pytest.raises(Crowded):
        draw(figure, {}, SIDE, random.Random(0))


def test_too_many_labels_have_no_room() -> None:
    figure = Figure(
        points={**rectangle(30, 1)},
        lines=polygon("ABCD"),
        lengths=sides(AB=30, BC=1, CD=30, DA=1),
        names="ABCD",
    )
    with pytest.raises(Crowded, match="no room for"):
        draw(figure, {name: name for name in "ABCD"}, SIDE, random.Random(0))


@pytest.mark.parametrize(
    ("first", "second", "start", "extent"),
    [((1, 0), (0, 1), 0, 90), ((0, 1), (1, 0), 0, 90), ((1, 0), (0, -1), 270, 90), ((-1, 0), (1, 0), 180, 180)],
)
def test_a_sector_is_the_smaller_one(first: Point, second: Point, start: float, extent: float) -> None:
    found = sector((0, 0), first, second)
    assert found[0] % 360 == pytest.approx(start) and found[1] == pytest.approx(extent)
