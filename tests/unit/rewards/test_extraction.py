from __future__ import annotations

import time

import pytest

from rlinf_vlm.rewards.extraction import extract_answer, find_boxes


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"so \boxed{3}. Wait, \boxed{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"\boxed {5}", "5"),
        (r"\boxed 5", "5"),
        (r"$\boxed 5$", "5"),
        (r"\boxed 52.", "52"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\fbox{5}", "5"),
        (r"\fbox{3} \boxed{5}", "5"),
        (r"\boxed{3} \fbox{5}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{ 5 }", "5"),
        ("\\boxed{\n5\n}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5} and so \boxed{12", "5"),
        (r"\boxed{12", None),
        (r"answer is 5, \boxed{12", None),
        (r"\boxed{a}}", "a"),
        (r"\boxedly{5} ", r"\boxedly{5}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"The answer is 4. \boxed{5}", "5"),
    ],
)
def test_boxes(text: str, answer: str | None):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5", "5"),
        ("The answer is 5.", "5"),
        ("The answer is: 3.5", "3.5"),
        ("Answer: 5 cm", "5 cm"),
        ("**Answer:** 5", "5"),
        ("Final answer: $\\frac{1}{2}$.", "$\\frac{1}{2}$"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("#### 42", "42"),
        ("The side is 5 cm", "5 cm"),
        ("So we get x = 5", "5"),
        ("Hence AB + BC = 12", "12"),
        ("x = 5", "x = 5"),
        ("the side of it is $5\\sqrt{3}$.", "$5\\sqrt{3}$"),
        ("", None),
        ("  ", None),
        ("I do not know what to say", "I do not know what to say"),
        ("It could be 5 or 6 or so", "5 or 6 or so"),
        ("5\n6", None),
        ("long " * 100, None),
        ("The answer is\n5", "5"),
        ("Answer: B. a pan", "B"),
    ],
)
def test_texts_without_a_box(text: str, answer: str | None):
    assert extract_answer(text) == answer


def test_boxes_in_order_and_cut_off():
    assert find_boxes(r"\boxed{1}, \boxed{2} \boxed{3") == (["1", "2"], True)
    assert find_boxes("none") == ([], False)


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 30_000, "\\boxed{}" * 30_000, "{" * 200_000, "answer is " * 20_000, "=" * 300]
)
def test_long_texts_are_read_in_no_time(text: str):
    began = time.process_time()
    extract_answer(text)
    assert time.process_time() - began < 1.0
