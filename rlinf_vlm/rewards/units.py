r"""Units behind a number: "5\text{ cm}^2", "30 degrees", "12 sq. ft". Pure strings and exact fractions.

Two answers are compared by unit only where both have one: 5 m is 500 cm and is not 5 kg, and 5 m is 5. Words that are
no known unit ("5 apples", "3 units") are dropped and fit to all.
Not here: currencies' rates, temperature, and units inside an expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """dimension: what is measured, with powers (("length", 2),), empty for a unit that fits to all; factor: how many
    of the dimension's base unit."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction


ANY = Unit(dimension=(), factor=Fraction(1))
DEGREE = Unit(dimension=(("angle", 1),), factor=Fraction(1))
RADIAN = Unit(dimension=(("radian", 1),), factor=Fraction(1))

_NAMES: dict[str, tuple[str, str]] = {
    "mm millimeter millimeters millimetre millimetres": ("length", "1/1000"),
    "cm centimeter centimeters centimetre centimetres": ("length", "1/100"),
    "m meter meters metre metres": ("length", "1"),
    "km kilometer kilometers kilometre kilometres": ("length", "1000"),
    "in inch inches": ("length", "0.0254"),
    "ft foot feet": ("length", "0.3048"),
    "yd yard yards": ("length", "0.9144"),
    "mi mile miles": ("length", "1609.344"),
    "mg milligram milligrams": ("mass", "1/1000000"),
    "g gram grams": ("mass", "1/1000"),
    "kg kilogram kilograms": ("mass", "1"),
    "lb lbs pound pounds": ("mass", "0.45359237"),
    "s sec secs second seconds": ("time", "1"),
    "min mins minute minutes": ("time", "60"),
    "h hr hrs hour hours": ("time", "3600"),
    "day days": ("time", "86400"),
    "degree degrees deg degs": ("angle", "1"),
    "rad rads radian radians": ("radian", "1"),
    "dollar dollars usd": ("money", "1"),
    "cent cents": ("money", "1/100"),
    "unit units": ("", "1"),
}
_UNITS = {name: (kind, Fraction(factor)) for names, (kind, factor) in _NAMES.items() for name in names.split()}
_VOLUMES = {
    "l": 1,
    "liter": 1,
    "liters": 1,
    "litre": 1,
    "litres": 1,
    "ml": 1000,
    "milliliter": 1000,
    "milliliters": 1000,
}
_PREFIXES = {"sq": 2, "square": 2, "cu": 3, "cubic": 3}
_POWERS = {"squared": 2, "cubed": 3}
_NEVER = re.compile(
    r"and|or|not|to|than|if|no|none|over|under|plus|minus|times|pi|sqrt|frac|sin|cos|tan|cot|sec|csc|log|ln|exp|alpha|beta|"
    r"gamma|theta|phi|lambda|mu|sigma|omega|infty|inf|infinity|percent|undefined|mod"
)
"""Words behind a number that are no unit and change what is said."""
TAIL = re.compile(
    r"(?:(?<=[\d})\]!|])|(?<=\\pi)|(?<=\\pi )|(?<=[^\\A-Za-z][A-Za-z])(?=\s*\\text\{))"
    r"(?:\\text\{[^{}]*\}|\\text(?=[A-Za-z])|(?<![A-Za-z\\])[A-Za-z]+\.?|\^\{?-?[23]\}?|[\s/])+\.?$"
)
"""Words, powers and strokes at the end, behind what can end an expression."""
_PIECE = re.compile(r"[A-Za-z]+|\^-?[23]|/")


def split_unit(latex: str) -> tuple[str, Unit | None]:
    r"""(the expression, its unit or None): "25\pi\text{ cm}^2" -> ("25\pi", square centimetres).

    A bare single letter is a unit only behind a plain number: "5m" has one, "xm" and "2x" have none.
    """
    match = TAIL.search(latex)
    if match is None or not re.search(r"[A-Za-z]", match.group()):
        return latex, None
    start, unit = match.start(), parse_unit(_spelled(match.group()))
    written = latex.find("\\text{", start)
    if unit is None and written > start:  # "2x\text{ m}": letters before the words belong to the expression
        start, unit = written, parse_unit(_spelled(latex[written:]))
    head, tail = latex[:start].rstrip(), latex[start:]
    words = re.findall(r"[A-Za-z]+", _spelled(tail).lower())
    if any(_NEVER.fullmatch(word) for word in words):
        return latex, None
    if "\\text" not in tail:
        if re.search(r"(?<!\\)[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", head.rpartition("=")[2])):
            return latex, None
        if unit is None and any(len(word) <= 3 for word in words):
            return latex, None
    if unit is not None:
        return head, unit
    shorter, inner = split_unit(head)  # "5 m \text{ long}"
    return shorter, inner or ANY


def _spelled(tail: str) -> str:
    r"""The words of a tail: "\text{ cm}^{2}" -> " cm^2"."""
    return re.sub(r"\\text\{([^{}]*)\}|\\text", r"\1", tail).replace("{", "").replace("}", "")


def parse_unit(text: str) -> Unit | None:
    """The unit that words spell ("sq. ft", "cm^2", "km/h", "miles per hour"); None when a word is no unit."""
    sign, times, prefix = 1, Fraction(1), 1
    powers: dict[str, int] = {}
    last: tuple[str, Fraction] | None = None
    for piece in _PIECE.findall(text.replace("mph", "mi/h").replace("cc", "cm^3")):
        word = piece.lower() if len(piece) > 1 else piece
        if word in ("/", "per"):
            sign, last = -1, None
        elif word in _PREFIXES:
            prefix = _PREFIXES[word]
        elif word[0] == "^" or word in _POWERS:
            if last is None:
                return None
            extra = int(word[1:]) - 1 if word[0] == "^" else _POWERS[word] - 1
            powers[last[0]] += sign * extra
            times *= last[1] ** (sign * extra)
        elif word in _UNITS or word.lower() in _VOLUMES:
            kind, factor, power = _named(word)
            power *= prefix
            powers[kind] = powers.get(kind, 0) + sign * power
            times *= factor ** (sign * power)
            last, prefix = (kind, factor), 1
        else:
            return None
    if not powers:
        return None
    if "" in powers:
        return ANY
    return Unit(dimension=tuple(sorted((kind, power) for kind, power in powers.items() if power)), factor=times)


def _named(word: str) -> tuple[str, Fraction, int]:
    """(kind, factor, power) of a unit's name."""
    if word in _UNITS:
        return (*_UNITS[word], 1)
    return "length", Fraction(1, 10 * (10 if _VOLUMES[word.lower()] == 1000 else 1)), 3


def fits(first: Unit | None, second: Unit | None) -> bool:
    """Whether the two may measure the same thing."""
    return first is None or second is None or ANY in (first, second) or first.dimension == second.dimension


def ratio(gold: Unit | None, given: Unit | None) -> Fraction:
    """By what the given number is multiplied to be in the gold answer's unit; 1 where one of them has none."""
    if gold is None or given is None or ANY in (gold, given):
        return Fraction(1)
    return given.factor / gold.factor
