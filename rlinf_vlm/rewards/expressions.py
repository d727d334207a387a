"""Whether two expressions in LaTeX are worth the same: the border to math-verify and sympy.

Dataflow: two strings in the small LaTeX of ``latex`` -> plain fractions where both are plain numbers; else parsed by
math-verify; numbers are compared by value, all else by math-verify, the gold expression first.
Invariants: nothing is parsed that ``limits`` refuses; exact numbers are equal when 45 digits are, decimals when six
places are and they are within a relative 1e-5, so that small numbers are told apart; no timer is set here
(math-verify's own uses SIGALRM, which works in a main thread only and takes it away from others).
Not here: units, equations that name a value, texts (``equality``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

from rlinf_vlm.rewards.limits import refusal

PLAIN = re.compile(
    r"(?P<sign>[+-]?)\s*(?:(?P<decimal>\d+(?:\.\d+)?)|"
    r"(?P<whole>\d+)?\s*\\frac\s*\{\s*(?P<above>-?\d+)\s*\}\s*\{\s*(?P<below>\d+)\s*\}|(?P<over>\d+)\s*/\s*(?P<under>\d+))"
)
DIGITS = 60
"""Decimal digits to which exact numbers are evaluated."""


class Refused(Exception):
    """An answer that is not judged; the reason in one line."""


class GoldRefused(Exception):
    """A gold answer with which nothing can be compared; the reason in one line."""


def same(gold: str, given: str, *, tolerance: float = 0.0) -> bool:
    """Whether ``given`` is worth what ``gold`` is, both in the LaTeX that ``latex.read_answer`` gives.

    tolerance: relative to the gold number, for numbers only; 0 asks for equality. Raises ``Refused``, or
    ``GoldRefused``, when one of the two is too costly or has an unknown command; an expression that cannot be parsed is
    not the same as any.
    """
    plain_gold, plain_given = plain_number(gold), plain_number(given)
    if plain_gold is not None and plain_given is not None:
        exact = "." not in gold and "." not in given
        return _close(sympy.Rational(plain_gold), sympy.Rational(plain_given), exact=exact, tolerance=tolerance)
    if gold == given:
        return True
    if (reason := refusal(gold)) is not None:
        raise GoldRefused(reason)
    if (reason := refusal(given)) is not None:
        raise Refused(reason)
    with _quiet():
        left, right = _parsed(gold), _parsed(given)
        if left is None or right is None:
            return False
        first, second = _value(left), _value(right)
        if first is not None and second is not None:
            exact = not (left.has(sympy.Float) or right.has(sympy.Float))
            return _close(first, second, exact=exact, tolerance=tolerance)
        if (first is None) != (second is None) and _is_number(left) and _is_number(right):
            return False
        return bool(verify([left], [right], timeout_seconds=None, allow_set_relation_comp=True))


def plain_number(latex: str) -> Fraction | None:
    """The value of an integer, a decimal, a fraction of integers or a mixed number; None for anything else."""
    match = PLAIN.fullmatch(latex.strip())
    if match is None or len(latex) > 100:
        return None
    if match["decimal"] is not None:
        value = Fraction(match["decimal"])
    else:
        above, below = (match["above"], match["below"]) if match["above"] else (match["over"], match["under"])
        if int(below) == 0 or (match["whole"] and above.startswith("-")):
            return None
        value = int(match["whole"] or 0) + Fraction(int(above), int(below))
    return -value if match["sign"] == "-" else value


def _parsed(latex: str) -> sympy.Basic | None:
    """What math-verify reads; it takes LaTeX for such only between dollar signs."""
    config = LatexExtractionConfig(
        boxed_match_priority=-1,
        normalization_config=NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, boxed="none"),
    )
    found = parse(f"${latex}$", [config], fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _is_number(expression: sympy.Basic) -> bool:
    return isinstance(expression, sympy.Expr) and bool(expression.is_number)


def _value(expression: sympy.Basic) -> sympy.Number | None:
    """The value of a finite real number to ``DIGITS`` digits, None for all else."""
    if not _is_number(expression):
        return None
    value = expression.doit().evalf(DIGITS)
    return value if isinstance(value, sympy.Number) and bool(value.is_finite) else None


def _close(gold: sympy.Number, given: sympy.Number, *, exact: bool, tolerance: float) -> bool:
    gap, size = abs(gold - given), max(abs(gold), abs(given))
    if tolerance > 0 and gap <= tolerance * abs(gold):
        return True
    if exact and isinstance(gap, sympy.Rational):
        return bool(gap == 0)
    if exact:
        return bool(gap <= size * sympy.Float("1e-45", DIGITS) or size < sympy.Float("1e-50", DIGITS))
    return bool(gap <= size * sympy.Float("1e-9") or (gap <= size * 1e-5 and gold.round(6) == given.round(6)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without math-verify's warning that it sets no time limit: ``limits`` and the pool do."""
    logger = logging.getLogger("math_verify")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
