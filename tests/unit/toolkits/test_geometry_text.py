"""Values in the text: letters stand where the numbers stood, and the text does not tell what kind of problem it is."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from toolkits.data import geometry_tables as tables
from toolkits.data.geometry_demo import RL_SETTINGS, GeometrySettings
from toolkits.data.geometry_figure import UNKNOWN, Problem
from toolkits.data.geometry_text import COMMON, fits, is_common, with_letters

TEXT_KINDS = tables.choose_kinds(None, 4, "text")


def labels(problem: Problem) -> list[str]:
    return [label.text for label in (*problem.figure.lengths, *problem.figure.angles)]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_letters_stand_for_the_given_numbers_and_the_text_says_which(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(60):
        problem = tables.KINDS[kind](rng)
        told = with_letters(problem, rng)
        values = dict(re.findall(r"\$([a-d])=(\d+)\$", told.question))
        assert values and [values.get(text, text) for text in labels(told)] == labels(problem)
        assert list(values) == sorted(values) == list("abcd"[: len(values)])
        numbers = {text for text in labels(told) if text.isdecimal()}
        assert numbers <= {"45", "60"}, "only what every problem of the kind has is a number in the picture"
        asked = told.question.split(". ", 1)[1]
        assert asked in {"Find $x$.", "Find the area.", "Find the perimeter."}
        assert (UNKNOWN in labels(told)) == (asked == "Find $x$.")
        assert replace(told, question=problem.question, figure=problem.figure) == problem, "something else changed"


def test_which_letter_a_number_gets_is_by_chance() -> None:
    rng = random.Random(0)
    first = Counter(labels(with_letters(tables.KINDS["rectangle_area"](rng), rng))[0] for _ in range(400))
    assert set(first) == {"a", "b"} and 140 < first["a"] < 260


def test_kinds_that_name_points_are_left_out() -> None:
    assert {"segment_double", "diameter", "segment_sum", "angle_sum"} == set(tables.KINDS) - set(TEXT_KINDS)
    assert not fits(tables.KINDS["diameter"](random.Random(0)))
    assert set(tables.choose_kinds(None, 2, "text")) == {kind for kind in TEXT_KINDS if tables.LEVEL_OF[kind] <= 2}
    assert tables.choose_kinds("diameter,midline", 1, "picture") == ("diameter", "midline")


@pytest.mark.parametrize("name", ["diameter", "dodecagon", ""])
def test_a_name_that_is_no_kind_is_an_error(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"--kinds: {name!r} is no kind with --given=text; take some of rectangle_side"
    ):
        tables.choose_kinds(f"midline,{name}", 4, "text")


def test_a_single_number_is_in_the_range_that_all_kinds_have() -> None:
    rng = random.Random(0)
    for kind in RL_SETTINGS.kinds.split(","):
        made = [tables.KINDS[kind](rng) for _ in range(1500)]
        common = {problem.numbers[0] for problem in made if is_common(problem)}
        assert common == set(COMMON[made[0].asked.what]), kind


def demo_rows(split: str, count: int) -> list[tables.GeometryRow]:
    settings = RL_SETTINGS
    kinds = tables.choose_kinds(settings.kinds, settings.max_level, settings.given)
    return tables.make_rows(split, count, side=settings.side, kinds=kinds, given=settings.given, seed=settings.seed)


def test_the_text_of_the_demo_does_not_tell_the_answer() -> None:
    """A guess that knows how often each answer to a text is right in training is right for a small part of the test."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in demo_rows("train", 1400):
        answers[row.question][row.answer] += 1
    test = demo_rows("test", 140)
    right = sum(answers[row.question].most_common(1)[0][0] == row.answer for row in test if row.question in answers)
    assert right / len(test) < 0.5
    assert sum(row.question in answers for row in test) > 0.9 * len(test), "texts that training never shows"


def test_the_setting_of_values_bounds_the_size() -> None:
    assert GeometrySettings(side=112, given="text").side == 112
    with pytest.raises(ValueError, match="--side=112: pictures with --given=picture are 140, 168, 196, 224 pixels"):
        GeometrySettings(side=112)


def test_a_careless_teacher_repeats_the_number_in_its_part_of_the_rows() -> None:
    kinds = tables.choose_kinds(RL_SETTINGS.kinds, RL_SETTINGS.max_level, "text")
    rows = tables.make_rows("train", 400, side=112, kinds=kinds, given="text", seed=0, careless=0.6)
    wrong = [row for row in rows if row.taught != row.answer]
    assert 0.5 < len(wrong) / len(rows) < 0.7
    assert all(row.taught == str(row.numbers[0]) for row in wrong)
    careful = tables.make_rows("train", 400, side=112, kinds=kinds, given="text", seed=0)
    assert [row.answer for row in careful] == [row.answer for row in rows]
    assert all(row.taught == row.answer for row in careful)
    with pytest.raises(ValueError, match=r"--careless=1\.5"):
        GeometrySettings(careless=1.5)
