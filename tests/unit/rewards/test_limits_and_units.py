from __future__ import annotations

import signal
import time
from fractions import Fraction

import pytest

from rlinf_vlm.rewards.limits import OutOfTime, cpu_limit, refusal
from rlinf_vlm.rewards.units import ANY, fits, parse_unit, ratio, split_unit


@pytest.mark.parametrize(
    "latex",
    [
        "5",
        r"\frac{1}{2}",
        "2^{10}",
        "10^{400}",
        "x^{2}+1",
        "e^{x}",
        "2^{x}",
        "(x+1)^{12}",
        "50!",
        r"\binom{10}{3}",
        "e^{-x^{y}}",
        r"\sqrt{3}^{2}",
        "10^{-20}",
    ],
)
def test_what_is_judged(latex: str):
    assert refusal(latex) is None


@pytest.mark.parametrize(
    ("latex", "why"),
    [
        ("9^{9^{9}}", "tower"),
        ("9^{x^2}", "tower"),
        ("9^9^9", "tower"),
        ("10^{401}", "exponent above 400"),
        ("10^{40 1}", "exponent above 400"),
        ("9^{21 \\times 20}", "exponent above 400"),
        ("9^{5!}", "tower"),
        ("51!", "factorial"),
        ("(5)!", "factorial"),
        ("5!!", "factorial"),
        ("(x+1)^{13}", "power above 12"),
        ("((9^{400})^{400})^{2}", "powers of powers"),
        (r"\int x", r"the command \int"),
        ("1" * 61, "61 digits"),
        ("1+" * 200, "400 characters"),
        ("(" * 11, "deeper than 10"),
        ("9^{9", "does not end"),
        (r"\binom{201}{3}", "binomial"),
        (r"\binom{n}{3}", "binomial"),
        (r"\binom 5 3", "binomial"),
    ],
)
def test_what_is_refused(latex: str, why: str):
    assert why in (refusal(latex) or "")


def test_cpu_limit_ends_a_computation_and_leaves_no_timer():
    before = signal.getsignal(signal.SIGVTALRM)
    began = time.process_time()
    with pytest.raises(OutOfTime), cpu_limit(0.2):
        while time.process_time() - began < 20:
            sum(range(1000))
    assert time.process_time() - began < 5
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0 and signal.getsignal(signal.SIGVTALRM) is before


@pytest.mark.parametrize(
    ("latex", "head"),
    [
        ("12 cm", "12"),
        (r"12\text{ cm}^2", "12"),
        (r"25\pi\text{ cm}^{2}", r"25\pi"),
        (r"5\sqrt{3}\text{ m}", r"5\sqrt{3}"),
        ("5m", "5"),
        ("12 sq. ft.", "12"),
        ("12 km/h", "12"),
        ("3x", "3x"),
        ("2 y^{2}-7 y", "2 y^{2}-7 y"),
        ("xm", "xm"),
        (r"2x\text{ m}", "2x"),
        ("5 or", "5 or"),
        (r"5\text{ or more}", r"5\text{ or more}"),
        ("cm", "cm"),
        ("5 apples", "5"),
        ("5abc", "5abc"),
        (r"2x \text{ apples}", "2x"),
        (r"5 m\text{ long}", "5"),
        ("x = 12 cm", "x = 12"),
        (r"\frac{1}{2}\text{ in.}", r"\frac{1}{2}"),
    ],
)
def test_splitting(latex: str, head: str):
    assert split_unit(latex)[0] == head


@pytest.mark.parametrize(
    ("given", "gold", "factor"),
    [
        ("cm", "m", "1/100"),
        ("cm^2", "m^2", "1/10000"),
        ("square centimeters", "m^2", "1/10000"),
        ("sq ft", "ft^2", "1"),
        ("liters", "cm^3", "1000"),
        ("mL", "cubic centimeters", "1"),
        ("km/h", "m/s", "5/18"),
        ("miles per hour", "mph", "1"),
        ("meters squared", "m^2", "1"),
        ("inches", "ft", "1/12"),
        ("minutes", "hours", "1/60"),
        ("cents", "dollars", "1/100"),
    ],
)
def test_conversion(given: str, gold: str, factor: str):
    first, second = parse_unit(gold), parse_unit(given)
    assert first is not None and second is not None and fits(first, second)
    assert ratio(first, second) == Fraction(factor)


def test_what_does_not_fit():
    for first, second in (("m", "kg"), ("m", "m^2"), ("s", "degrees"), ("m/s", "m")):
        assert not fits(parse_unit(first), parse_unit(second))
    assert fits(parse_unit("units"), parse_unit("kg")) and fits(None, parse_unit("m")) and fits(ANY, ANY)
    assert parse_unit("parsnips") is None and parse_unit("^2") is None and parse_unit("") is None
