r"""Whether two answers are the same, with what people write around an expression: units, "x =", "or", per cent.

    gold 5, given "x = 5 \text{ cm}" -> same      gold 5 m, given 500 cm -> same      gold 5 m, given 5 kg -> not
    gold 50\%, given \frac{1}{2} or 50 -> same    gold 8\sqrt{3}, given "8\sqrt{3} \approx 13.86" -> same

Invariants: two answers that are written alike are the same, even where nothing can parse them; what offers several
answers ("5 or 6", "5 = 6") is never the same as one of them but the last of a chain of equals.
Not here: finding the answer in a text (``extraction``) and the worth of an expression (``expressions``).
"""

from __future__ import annotations

import re

from rlinf_vlm.rewards.expressions import GoldRefused, Refused, same
from rlinf_vlm.rewards.latex import Answer, read_answer
from rlinf_vlm.rewards.units import DEGREE, RADIAN, fits, ratio

EQUALS = re.compile(r"(?<![<>!=])=(?!=)")
LABEL = re.compile(
    r"\\(?:angle|triangle|overline|theta|alpha|beta|gamma|phi|lambda|mu|sigma|omega|circ|square)(?![A-Za-z])|"
    r"\\text\{[^{}]*\}|[\s{}'_]|\|(?=[A-Z]{2}\|)|(?<=[A-Z]{2})\||\d+$"
)
NAME = re.compile(r"[A-Za-z]?|[A-Za-z]\d*|[A-Za-z]\([A-Za-z]\)|m?\(?[A-Z]{1,5}\)?|m?[1-9]?|[A-Za-z]{3,}(?:[A-Z]{0,5})")
SET = re.compile(r"\\\{[^()\[\]|:]*\\\}")
POINT = re.compile(r"\([^()]*,[^()]*\)")
INSIDE = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*")


def is_same(gold: Answer, given: Answer, *, tolerance: float = 0.0) -> bool:
    """Whether the given answer is the gold one. Raises ``Refused`` or ``GoldRefused`` where that is too costly to say.

    tolerance: relative to the gold number, for numbers only.
    """
    if not gold.written or not given.written:
        return False
    if gold.written == given.written:
        return True
    if gold.is_text or given.is_text:
        return gold.is_text and gold.words == given.words
    listed = _same_lists(gold.latex, given.latex, tolerance)
    if listed is not None:
        return listed
    angle = _as_radians(gold, given, tolerance)
    if angle is not None:
        return angle
    if not fits(gold.unit, given.unit):
        return False
    scale = ratio(gold.unit, given.unit)
    for wanted in _values(gold.latex, against=given.latex):
        for found in _values(given.latex, against=gold.latex):
            scaled = found if scale == 1 else rf"\frac{{{scale.numerator}}}{{{scale.denominator}}}\cdot ({found})"
            if _same_percent(wanted, gold.percent, scaled, given.percent, tolerance):
                return True
    return False


def _same_lists(gold: str, given: str, tolerance: float) -> bool | None:
    """Compares answers that are several ("60, 60, 60", "x = 2, x = 3") one by one in any order, repetitions counted.

    None when none of the two is such, or when one is a point, an interval, "+-3" or of several names ("x = 2, y = 3").
    A set in braces is no point.
    """
    if any(SET.fullmatch(one) and POINT.fullmatch(other) for one, other in ((gold, given), (given, gold))):
        return False
    wanted, found = _items(gold), _items(given)
    if len(wanted) == len(found) == 1 or any(re.search(r"\\pm|[(\[|,]|\\begin", item) for item in (*wanted, *found)):
        return None
    if len(wanted) != len(found):
        return False
    left = list(found)
    for item in wanted:
        match = next(
            (other for other in left if is_same(read_answer(item), read_answer(other), tolerance=tolerance)), None
        )
        if match is None:
            return False
        left.remove(match)
    return True


def _items(latex: str) -> list[str]:
    names = {sides[0].strip() for sides in map(EQUALS.split, latex.split(",")) if len(sides) > 1}
    if re.search(r"[(\[|]|\\begin", latex) or len(names) > 1:
        return [latex]
    bare = re.sub(r"^\\\{(.*)\\\}$", r"\1", latex.strip())
    return [item.strip() for item in bare.split(",")]


def _same_percent(gold: str, gold_percent: bool, given: str, given_percent: bool, tolerance: float) -> bool:
    """50% is 50 and is 0.5; 50 and 0.5 are not the same."""
    if same(gold, given, tolerance=tolerance):
        return True
    if gold_percent == given_percent:
        return False
    if gold_percent:
        return same(rf"\frac{{1}}{{100}}\cdot ({gold})", given, tolerance=tolerance)
    return same(gold, rf"\frac{{1}}{{100}}\cdot ({given})", tolerance=tolerance)


def _as_radians(gold: Answer, given: Answer, tolerance: float) -> bool | None:
    r"""Compares degrees with radians (named so, or a multiple of \pi without a unit); None when it is not that."""
    for first, second in ((gold, given), (given, gold)):
        radians = second.unit == RADIAN or (second.unit is None and "\\pi" in second.latex)
        if first.unit == DEGREE and radians and "\\pi" not in first.latex:
            in_radians = rf"\frac{{\pi}}{{180}}\cdot ({first.latex})"
            pair = (in_radians, second.latex) if first is gold else (second.latex, in_radians)
            return same(*pair, tolerance=tolerance)
    return None


def _values(latex: str, *, against: str) -> list[str]:
    """What an answer says: itself, or the last of its chain of equals where the other answer is no equation."""
    latex = INSIDE.sub("", latex) if "\\in" not in against else latex
    if EQUALS.search(latex) and not EQUALS.search(against):
        stripped = _right_sides(latex)
        if stripped is None:
            return []
        latex = stripped
    elif EQUALS.search(latex) and len(EQUALS.split(latex)) == len(EQUALS.split(against)) == 2:
        (name, value), (other, _) = EQUALS.split(latex), EQUALS.split(against)
        if _is_name(name) and _is_name(other) and _bare(name) == _bare(other) and _bare(name):
            latex = value.strip()
    parts = [part.strip() for part in latex.split("\\approx")]
    if (
        len(parts) == 2
        and _is_name(parts[0])
        and re.search(r"[A-Za-z]", parts[0].replace("\\pi", "").replace("sqrt", ""))
    ):
        return [parts[1]]
    if len(parts) == 1:
        return parts
    return parts if _agree(parts) else []


def _agree(parts: list[str]) -> bool:
    """Whether the sides of an approximation are within 1 %: else they are several answers."""
    try:
        return all(parts) and all(same(parts[0], part, tolerance=0.01) for part in parts[1:])
    except (Refused, GoldRefused):
        return False


def _right_sides(latex: str) -> str | None:
    """Without "name =" before each of the answers; None when what stands on the left is no name of a value."""
    pieces = re.split(r",\s*(?=[^,=]*=)", latex)
    found = []
    for piece in pieces:
        sides = [side.strip() for side in EQUALS.split(piece)]
        if len(sides) < 2:
            found.append(piece)
            continue
        if not _is_name(sides[0]) and re.search(r"(?<![\\A-Za-z])[a-zA-Z]", sides[0]):
            return None
        found.append(sides[-1])
    return ", ".join(found)


def _bare(side: str) -> str:
    return LABEL.sub("", side)


def _is_name(side: str) -> bool:
    r"""Whether it names a value: x, AB, m\angle ABC, f(x), \text{Area}, AB + BC; not 2x or x + 2."""
    return all(NAME.fullmatch(_bare(part)) is not None for part in re.split(r"[+-]", side)) and (
        re.search(r"[+-]", side) is None or re.search(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", side) is None
    )
