from __future__ import annotations

import threading
import time

import pytest

from rlinf_vlm.rewards.math import grade, judge
from tests.unit.rewards.right_answers import RIGHT
from tests.unit.rewards.wrong_answers import WRONG


@pytest.mark.parametrize("gold", RIGHT)
def test_right(gold: str):
    wrong = [given for given in RIGHT[gold] if grade(rf"So it is $\boxed{{{given}}}$.", gold) != 1.0]
    assert wrong == []


@pytest.mark.parametrize("gold", WRONG)
def test_wrong(gold: str):
    right = [given for given in WRONG[gold] if grade(rf"So it is $\boxed{{{given}}}$.", gold) != 0.0]
    assert right == []


def test_there_are_several_hundred_pairs():
    assert sum(map(len, RIGHT.values())) > 350 and sum(map(len, WRONG.values())) > 250


@pytest.mark.parametrize("gold", RIGHT)
def test_a_gold_answer_equals_itself_however_it_is_wrapped(gold: str):
    for given in (gold, rf"\boxed{{{gold}}}", f"The answer is ${gold}$."):
        for answer in (gold, f"${gold}$", rf"\boxed{{{gold}}}", f" {gold} "):
            assert grade(given, answer) == 1.0, (given, answer)


def test_golds_of_different_worth_are_told_apart():
    golds = ["5", "0.5", r"\frac{1}{3}", r"5\sqrt{3}", r"\frac{2\sqrt{3}}{3}", r"25\pi", "-3", "8.6", r"2+3\sqrt{5}"]
    for gold in golds:
        assert [other for other in golds if grade(rf"\boxed{{{other}}}", gold)] == [gold]


BOMBS = [
    "9^{9^{9^9}}",
    "9^9^9^9",
    "9**9**9**9",
    "9^{999999999}",
    "1e999999999",
    "((9^{400})^{400})^{400}",
    "99!^{99!}",
    "(9!)!",
    r"\sum_{k=1}^{10^9} k^k",
    r"\int_0^\infty e^{x^{99}} dx",
    r"\binom{1000000000}{500000000}",
    "(x+y+z+w)^{400}",
    "e^{e^{e^{e^{e}}}}",
    r"\sqrt[9999999]{9^{9999}}",
    "(" * 5000 + "5" + ")" * 5000,
    "{" * 100_000 + "5" + "}" * 100_000,
    "9" * 100_000,
    "1+" * 50_000 + "1",
    "-" * 3000 + "5",
    r"\frac{" * 2000,
    r"\boxed{" * 20_000,
    "$" * 100_001,
    " " * 100_000,
    "x" * 100_000,
    "^" * 200,
    r"\text{" * 20_000,
    "a^{b^{c^{d^e}}}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{400}",
    r"(x+1)^{12}(x+2)^{12}(x+3)^{12}(y+4)^{12}",
    "9^{99\\times 99}",
    "²" * 300,
    "5\n" * 30_000,
    "answer is " * 10_000,
]


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb[:20])
def test_bombs_are_quick_and_wrong(bomb: str):
    began = time.process_time()
    for prediction, gold in ((bomb, "7"), (rf"\boxed{{{bomb}}}", "7"), (r"\boxed{7}", bomb)):
        assert grade(prediction, gold) == 0.0
    assert time.process_time() - began < 5.0


@pytest.mark.parametrize(
    "garbage", ["", " ", "\x00", "\ud800", "日本語", "\\", "$", "{", "}", "\\boxed", "\\boxed{", "^", "%"]
)
def test_garbage_is_wrong_and_raises_nothing(garbage: str):
    for prediction in (garbage, rf"\boxed{{{garbage}}}"):
        assert grade(prediction, "7") == 0.0
        assert grade(r"\boxed{7}", garbage) == 0.0
    assert grade("", "") == 0.0


def test_what_is_not_judged_says_so():
    assert judge(r"\boxed{9^{9^9}}", "7").status == "refused"
    assert judge(r"\boxed{8}", "7").status == "ok"
    assert judge("", "7").detail == "no answer found"


def test_it_grades_in_any_thread():
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(grade(r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}")))
    thread.start()
    thread.join()
    assert found == [1.0]


@pytest.mark.parametrize(
    ("given", "gold", "tolerance", "right"),
    [
        ("8.66", r"5\sqrt{3}", 0.05, 1.0),
        ("9.1", r"5\sqrt{3}", 0.05, 0.0),
        (r"\frac{8}{15}", "0.53", 0.05, 1.0),
        ("0.3", "0.28", 0.05, 0.0),
        ("105", "100", 0.05, 1.0),
        ("105.1", "100", 0.05, 0.0),
        ("-100", "100", 0.05, 0.0),
        ("0.001", "0", 0.05, 0.0),
        ("x", "5", 0.05, 0.0),
        ("103 cm", "1 m", 0.05, 1.0),
        ("8.66", r"5\sqrt{3}", 0.0, 0.0),
    ],
)
def test_tolerance_is_relative_to_the_gold_number(given: str, gold: str, tolerance: float, right: float):
    assert judge(rf"\boxed{{{given}}}", gold, tolerance=tolerance).value == right


def test_a_gold_answer_that_cannot_be_compared_with_is_no_fault_of_the_answer():
    assert judge(r"\boxed{5}", r"9^{9^{9^9}}").status == "error"
    assert judge(r"\boxed{9^{9^{9^9}}}", "5").status == "refused"
    assert judge(r"\boxed{\hocus{5}}", "5").status == "refused"
