r"""Draws a figure: lines, circles, marks, and labels that touch nothing.

    Figure -> turned, mirrored, scaled to the picture -> lines and marks, drawn large and shrunk (smooth edges)
           -> each label at the free place nearest to what it belongs to -> grey picture, ``side`` x ``side`` pixels

Labels stand on a lattice of 7 x 14 pixels, one digit a place, because a model sees the picture in patches of 14 x 14:
a digit then looks the same wherever it stands. A label's box is free of lines and of other labels; a length is nearer
to its own segment than to any other, an angle's number lies between its arms. Where that cannot be, ``Crowded`` is
raised and the caller tries another position. Does not know what is asked or the answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toolkits.data.geometry_figure import AngleLabel, Figure, LengthLabel, Point, spread

POSITIONS = 8
"""Ways to lay a figure: four quarter turns, each plain or mirrored."""
STEP = 7
"""Pixels between places of labels from left to right, and the width of a digit."""
ROW = 14
"""Pixels between places of labels from top to bottom: a patch of the model's, which a label fits into."""
TEXT_HEIGHT = 12
"""Height of a label's box in pixels; digits are 9 to 10 of them."""
FONT_SIZE = 13
MARGIN = 19
"""Pixels around the figure, where labels of outer sides stand; half of it where angles alone are labelled."""
SMOOTH = 4
"""How much larger lines are drawn before they are shrunk."""
LINE = 1.3
ARC = 11.0
"""Radius of an angle's arc in pixels; a right angle's square is two thirds of it."""
INWARDS = 4.0
"""Pixels that a length may stand farther off on the outer side of its segment before it stands on the inner one."""
FARTHEST = {"length": 21.0, "angle": 22.0, "name": 16.0}
"""Pixels from the middle of a label to where it would stand if there were no lines."""


class Crowded(Exception):
    """A label has no place in this position of the figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A label in the picture: ``box`` is left, top, right, bottom in pixels."""

    text: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """The picture, the points in pixels (y downwards), and where the labels stand."""

    image: Image.Image
    points: Mapping[str, Point]
    labels: tuple[Placed, ...]


def draw(figure: Figure, letters: Mapping[str, str], side: int, rng: random.Random, position: int = 0) -> Drawing:
    """``figure`` in one of POSITIONS, size and place by chance. letters: the name that each point has in the picture.

    Raises Crowded.
    """
    points = place(figure, side, rng, position)
    lines = draw_lines(figure, points, side)
    ink = np.asarray(lines) < 250
    sheet = Sheet(ink)
    labels = list(_labels(figure, points, letters, sheet))
    pen = ImageDraw.Draw(lines)
    font = ImageFont.load_default(size=FONT_SIZE)
    for label in labels:
        left, top, *_ = label.box
        width = (label.box[2] - left) / len(label.text)
        for index, character in enumerate(label.text):
            at = (left + width * (index + 0.5), top + TEXT_HEIGHT - 1)
            pen.text(at, character, font=font, fill=0, anchor="ms")
    return Drawing(image=lines, points=points, labels=tuple(labels))


def place(figure: Figure, side: int, rng: random.Random, position: int) -> dict[str, Point]:
    """The points in pixels: turned and mirrored by ``position``, scaled to 85 to 100 % of the room, moved."""
    turned = {name: _turn(point, position % 4, position >= 4) for name, point in figure.points.items()}
    radii = [(turned[centre], math.dist(turned[centre], turned[rim])) for centre, rim in figure.circles]
    extremes = [(x + dx * r, y + dy * r) for (x, y), r in radii for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    low, high = spread([*turned.values(), *extremes])
    margin = MARGIN if figure.lengths or figure.names else MARGIN / 2
    room = side - 2 * margin
    scale = room * rng.uniform(0.85, 1.0) / max(high[0] - low[0], high[1] - low[1])
    slack = (room - scale * (high[0] - low[0]), room - scale * (high[1] - low[1]))
    left, top = margin + rng.random() * slack[0], margin + rng.random() * slack[1]
    return {name: (left + scale * (x - low[0]), top + scale * (high[1] - y)) for name, (x, y) in turned.items()}


def _turn(point: Point, quarter: int, mirrored: bool) -> Point:
    x, y = (-point[0], point[1]) if mirrored else point
    for _ in range(quarter):
        x, y = -y, x
    return (x, y)


# lines and marks


def draw_lines(figure: Figure, points: Mapping[str, Point], side: int) -> Image.Image:
    """The figure without its labels; ``points`` in pixels."""
    large = Image.new("L", (side * SMOOTH, side * SMOOTH), 255)
    pen = ImageDraw.Draw(large)
    for segment in figure.lines:
        _stroke(pen, points[segment[0]], points[segment[1]])
    for segment in figure.dashed:
        for start, end in _dashes(points[segment[0]], points[segment[1]]):
            _stroke(pen, start, end)
    for centre, rim in figure.circles:
        _arc(pen, points[centre], math.dist(points[centre], points[rim]), 0, 360)
    for index, group in enumerate(figure.equal):
        for segment in group:
            _ticks(pen, points[segment[0]], points[segment[1]], index + 1)
    for corner, first, second in figure.right_angles:
        _square(pen, points[corner], points[first], points[second])
    for label in figure.angles:
        at = points[label.at]
        angle, extent = sector(at, points[label.arms[0]], points[label.arms[1]])
        _arc(pen, at, ARC, angle, angle + extent)
    for name in figure.dots:
        x, y = points[name]
        pen.ellipse([SMOOTH * (x - 1.8), SMOOTH * (y - 1.8), SMOOTH * (x + 1.8), SMOOTH * (y + 1.8)], fill=0)
    return large.resize((side, side), Image.Resampling.BOX)


def _stroke(pen: ImageDraw.ImageDraw, start: Point, end: Point) -> None:
    pen.line([SMOOTH * start[0], SMOOTH * start[1], SMOOTH * end[0], SMOOTH * end[1]], fill=0, width=_width())


def _width() -> int:
    return round(SMOOTH * LINE)


def _arc(pen: ImageDraw.ImageDraw, at: Point, radius: float, start: float, end: float) -> None:
    box = [SMOOTH * (at[0] - radius), SMOOTH * (at[1] - radius), SMOOTH * (at[0] + radius), SMOOTH * (at[1] + radius)]
    pen.arc(box, start, end, fill=0, width=_width())


def _dashes(start: Point, end: Point) -> Iterator[tuple[Point, Point]]:
    count = max(2, round(math.dist(start, end) / 6))
    for index in range(count):
        first, last = index / count, (index + 0.55) / count
        yield _between(start, end, first), _between(start, end, last)


def _between(start: Point, end: Point, part: float) -> Point:
    return (start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1]))


def _ticks(pen: ImageDraw.ImageDraw, start: Point, end: Point, count: int) -> None:
    length = math.dist(start, end)
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    for index in range(count):
        off = 3.0 * (index - (count - 1) / 2)
        x = (start[0] + end[0]) / 2 + off * along[0]
        y = (start[1] + end[1]) / 2 + off * along[1]
        _stroke(pen, (x - 3 * along[1], y + 3 * along[0]), (x + 3 * along[1], y - 3 * along[0]))


def _square(pen: ImageDraw.ImageDraw, corner: Point, first: Point, second: Point) -> None:
    size = ARC * 2 / 3
    ways = [_between(corner, arm, size / math.dist(corner, arm)) for arm in (first, second)]
    far = (ways[0][0] + ways[1][0] - corner[0], ways[0][1] + ways[1][1] - corner[1])
    _stroke(pen, ways[0], far)
    _stroke(pen, far, ways[1])


def sector(at: Point, first: Point, second: Point) -> tuple[float, float]:
    """Start and extent (0 to 180) in degrees, clockwise from the right as pictures count, of the angle at ``at``."""
    start = math.degrees(math.atan2(first[1] - at[1], first[0] - at[0]))
    turn = (math.degrees(math.atan2(second[1] - at[1], second[0] - at[0])) - start) % 360
    return (start, turn) if turn <= 180 else (start + turn, 360 - turn)


# labels


class Sheet:
    """Where there is room: counts of inked pixels, for boxes of any size on the lattice."""

    def __init__(self, ink: np.ndarray) -> None:
        """ink [side, side]: True where something is drawn."""
        self.ink = ink.copy()

    def free(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Left edges and top edges [n] of all boxes for ``text`` that touch nothing, a pixel around them."""
        width = width_of(text)
        sums = np.zeros((self.ink.shape[0] + 1, self.ink.shape[1] + 1), np.int32)
        sums[1:, 1:] = self.ink.cumsum(0).cumsum(1)
        left = np.arange(STEP, self.ink.shape[1] - width - 1, STEP)
        top = np.arange(1, self.ink.shape[0] - TEXT_HEIGHT, ROW)
        x, y = (grid.ravel() for grid in np.meshgrid(left, top))
        right, bottom = x + width + 1, y + TEXT_HEIGHT + 1
        inked = sums[bottom, right] - sums[y - 1, right] - sums[bottom, x - 1] + sums[y - 1, x - 1]
        return x[inked == 0], y[inked == 0]

    def take(self, text: str, x: int, y: int) -> Placed:
        """Writes down that the box is used, and that none may stand so near that the two read as one."""
        box = (x, y, x + width_of(text), y + TEXT_HEIGHT)
        self.ink[box[1] : box[3], max(0, box[0] - STEP) : box[2] + STEP] = True
        return Placed(text=text, box=box)


def width_of(text: str) -> int:
    """Pixels of a label's box: a step for a digit or x, two for the letter of a point."""
    return 2 * STEP if text.isupper() else STEP * len(text)


def _labels(figure: Figure, points: Mapping[str, Point], letters: Mapping[str, str], sheet: Sheet) -> Iterator[Placed]:
    """Angles first, which have the least room; then lengths, then names."""
    for angle in figure.angles:
        yield _put_angle(angle, figure, points, sheet)
    for length in figure.lengths:
        yield _put_length(length, figure, points, sheet)
    for name in figure.names:
        yield _put_name(name, letters[name], points, sheet)


def _put_angle(label: AngleLabel, figure: Figure, points: Mapping[str, Point], sheet: Sheet) -> Placed:
    """Between the arms, with no line before it, nearer to its own corner than to another labelled one."""
    at = points[label.at]
    start, extent = sector(at, points[label.arms[0]], points[label.arms[1]])
    middle = math.radians(start + extent / 2)
    x, y = sheet.free(label.text)
    across, down = x + width_of(label.text) / 2 - at[0], y + TEXT_HEIGHT / 2 - at[1]
    turn = (np.degrees(np.arctan2(down, across)) - start) % 360
    fits = (turn > 0.12 * extent) & (turn < 0.88 * extent)
    for first, second in (*figure.lines, *figure.dashed):
        if _distance(np.array(at[0]), np.array(at[1]), points[first], points[second]) > 0.5:
            fits &= ~_hidden(at, across, down, points[first], points[second])
    for other in {other.at for other in figure.angles} - {label.at}:
        there = points[other]
        fits &= np.hypot(across, down) < np.hypot(across + at[0] - there[0], down + at[1] - there[1])
    reach = ARC + 9
    away = np.hypot(across - reach * math.cos(middle), down - reach * math.sin(middle))
    return _nearest(label.text, x, y, np.where(fits, away, np.inf), "angle", sheet)


def _hidden(at: Point, across: np.ndarray, down: np.ndarray, first: Point, second: Point) -> np.ndarray:
    """Whether the segment crosses the way from ``at`` to each place (across, down), which count from ``at``."""
    ax, ay, bx, by = first[0] - at[0], first[1] - at[1], second[0] - at[0], second[1] - at[1]
    apart = (across * ay - down * ax) * (across * by - down * bx) < 0
    sx, sy = bx - ax, by - ay
    beyond = (sx * -ay - sy * -ax) * (sx * (down - ay) - sy * (across - ax)) < 0
    return apart & beyond


def _put_length(label: LengthLabel, figure: Figure, points: Mapping[str, Point], sheet: Sheet) -> Placed:
    """Nearer to its own segment than to any other line; rather outside of the figure than in it."""
    x, y = sheet.free(label.text)
    across, down = x + width_of(label.text) / 2, y + TEXT_HEIGHT / 2
    start, end = (points[name] for name in label.ends)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    segments = {frozenset(label.ends) for label in figure.lengths} | {
        frozenset(segment) for segment in (*figure.lines, *figure.dashed)
    }
    others = [
        _distance(across, down, *(points[name] for name in sorted(segment)))
        for segment in segments - {frozenset(label.ends)}
    ]
    for centre, rim in figure.circles:
        (cx, cy), radius = points[centre], math.dist(points[centre], points[rim])
        others.append(np.abs(np.hypot(across - cx, down - cy) - radius))
    nearest = np.min(others, axis=0) if others else np.full(len(x), np.inf)
    away = np.hypot(across - middle[0], down - middle[1])
    cx, cy = (sum(values) / len(points) for values in zip(*points.values(), strict=True))
    inside = (across - middle[0]) * (cx - middle[0]) + (down - middle[1]) * (cy - middle[1]) > 0
    fits = _distance(across, down, start, end) + 1.5 < nearest
    return _nearest(label.text, x, y, np.where(fits, away + INWARDS * inside, np.inf), "length", sheet)


def _put_name(name: str, letter: str, points: Mapping[str, Point], sheet: Sheet) -> Placed:
    x, y = sheet.free(letter)
    across, down = x + width_of(letter) / 2, y + TEXT_HEIGHT / 2
    away = {other: np.hypot(across - point[0], down - point[1]) for other, point in points.items()}
    others = np.min([distance for other, distance in away.items() if other != name], axis=0)
    return _nearest(letter, x, y, np.where(away[name] + 2 < others, away[name], np.inf), "name", sheet)


def _nearest(text: str, x: np.ndarray, y: np.ndarray, away: np.ndarray, what: str, sheet: Sheet) -> Placed:
    best = int(np.argmin(away)) if len(away) else -1
    if best < 0 or away[best] > FARTHEST[what]:
        raise Crowded(f"no room for {text!r}")
    return sheet.take(text, int(x[best]), int(y[best]))


def _distance(across: np.ndarray, down: np.ndarray, start: Point, end: Point) -> np.ndarray:
    """From each place to the nearest point of a segment."""
    length = math.dist(start, end)
    way = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    along = np.clip((across - start[0]) * way[0] + (down - start[1]) * way[1], 0, length)
    return np.hypot(across - start[0] - along * way[0], down - start[1] - along * way[1])
