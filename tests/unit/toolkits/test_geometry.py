r"""Geometry problems: each answer, which a formula gave, is measured in the figure's coordinates; rows; splits."""

from __future__ import annotations

import io
import math
import random
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image

from rlinf_vlm.config.schema import DataConfig
from rlinf_vlm.data.kinds import make_kind
from toolkits.data import geometry_figure as figure
from toolkits.data import geometry_tables as tables
from toolkits.data import geometry_work
from toolkits.data.geometry_figure import UNKNOWN, Asked, Problem, Surd, measure, surd

CLOSE = 1e-9
ALL = tuple(tables.KINDS)
SQUARE = {"A": (0.0, 0.0), "B": (2.0, 0.0), "C": (2.0, 2.0), "D": (0.0, 2.0)}


def problems(kind: str, count: int = 150) -> list[Problem]:
    rng = random.Random(f"test {kind}")
    return [tables.KINDS[kind](rng) for _ in range(count)]


def stands_for(text: str, problem: Problem) -> float:
    return problem.answer.value if text == UNKNOWN else float(text)


# the ruler itself, on figures that need none


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        (Asked(what="length", points="AC"), math.sqrt(8)),
        (Asked(what="angle", points="ABC"), 90),
        (Asked(what="angle", points="BAC"), 45),
        (Asked(what="area", points="ABCD"), 4),
        (Asked(what="area", points="DCBA"), 4),
        (Asked(what="area", points="ABC"), 2),
        (Asked(what="perimeter", points="ABCD"), 8),
    ],
)
def test_the_ruler_measures(asked: Asked, value: float) -> None:
    assert measure(SQUARE, asked) == pytest.approx(value, abs=CLOSE)


@pytest.mark.parametrize(
    ("radicand", "factor", "exact", "latex"),
    [
        (75, 1, Surd(factor=5, radicand=3), r"5\sqrt{3}"),
        (13, 1, Surd(factor=1, radicand=13), r"\sqrt{13}"),
        (25, 1, Surd(factor=5), "5"),
        (2, 7, Surd(factor=7, radicand=2), r"7\sqrt{2}"),
        (72, 1, Surd(factor=6, radicand=2), r"6\sqrt{2}"),
        (1, 12, Surd(factor=12), "12"),
    ],
)
def test_roots_are_in_lowest_terms(radicand: int, factor: int, exact: Surd, latex: str) -> None:
    assert surd(radicand, factor) == exact
    assert exact.latex == latex
    assert exact.value == pytest.approx(factor * math.sqrt(radicand), abs=CLOSE)


# every kind


def test_there_are_kinds_of_every_level() -> None:
    assert len(tables.KINDS) >= 40 and list(map(len, tables.LEVELS)) == [7, 13, 14, 13]
    assert set(tables.LEVEL_OF.values()) == {1, 2, 3, 4}


@pytest.mark.parametrize("kind", tables.KINDS)
def test_the_answer_is_what_the_figure_measures(kind: str) -> None:
    for problem in problems(kind):
        measured = measure(problem.figure.points, problem.asked)
        assert measured == pytest.approx(problem.answer.value, abs=1e-7), problem
        assert problem.answer.value > 0 and surd(problem.answer.radicand) == Surd(
            factor=1, radicand=problem.answer.radicand
        )


@pytest.mark.parametrize("kind", tables.KINDS)
def test_labels_and_marks_are_true(kind: str) -> None:
    for problem in problems(kind):
        drawn, points = problem.figure, problem.figure.points
        for length in drawn.lengths:
            measured = math.dist(*(points[name] for name in length.ends))
            assert measured == pytest.approx(stands_for(length.text, problem), abs=1e-7), length
        for angle in drawn.angles:
            measured = figure.angle_between(points[angle.arms[0]], points[angle.at], points[angle.arms[1]])
            assert measured == pytest.approx(stands_for(angle.text, problem), abs=1e-7), angle
        for corner, first, second in drawn.right_angles:
            assert figure.angle_between(points[first], points[corner], points[second]) == pytest.approx(90, abs=1e-7)
        for group in drawn.equal:
            lengths = [math.dist(points[first], points[second]) for first, second in group]
            assert max(lengths) - min(lengths) < 1e-7
        for centre, rim in drawn.circles:
            on_it = [
                name
                for name in points
                if math.isclose(math.dist(points[centre], points[rim]), math.dist(points[centre], points[name]))
            ]
            assert len(on_it) >= 2 or kind == "tangent"


@pytest.mark.parametrize("kind", tables.KINDS)
def test_what_is_asked_is_marked_or_named_and_what_is_given_is_not_told(kind: str) -> None:
    for problem in problems(kind, 40):
        texts = [label.text for label in (*problem.figure.lengths, *problem.figure.angles)]
        assert not re.search(r"\d", problem.question), "the picture would not be needed"
        assert texts.count(UNKNOWN) == ("$x$" in problem.question)
        assert set(re.findall(r"\{(\w)\}", problem.question)) <= set(problem.figure.names)
        given = {text for text in texts if text != UNKNOWN}
        assert given, "nothing is given"
        if tables.LEVEL_OF[kind] == 1:
            assert problem.answer.latex in given
        words = problem.question.split()
        assert (problem.asked.what == "area") == ("area" in words)
        assert (problem.asked.what == "perimeter") == ("perimeter" in words)


def test_the_exterior_angle_lies_beside_the_triangle() -> None:
    for problem in problems("exterior_angle", 20):
        first, second = problem.numbers
        assert problem.answer.factor == first + second


HAND = {
    "rectangle_area": lambda a, b: a * b,
    "rectangle_perimeter": lambda a, b: a + a + b + b,
    "triangle_angle": lambda a, b: 180 - (a + b),
    "complementary_angle": lambda a: 90 - a,
    "hexagon_perimeter": lambda a: a + a + a + a + a + a,
    "trapezoid_area": lambda a, b, h: b * h + (a - b) * h / 2,
    "l_shape_area": lambda w, h, c, d: (w - c) * h + c * (h - d),
    "hypotenuse": math.hypot,
    "similar_triangles": lambda upper, lower, parallel: parallel * (upper + lower) / upper,
}


@pytest.mark.parametrize("kind", HAND)
def test_answers_by_a_second_formula(kind: str) -> None:
    for problem in problems(kind):
        assert problem.answer.value == pytest.approx(HAND[kind](*problem.numbers), abs=1e-7)


@pytest.mark.parametrize("kind", [*geometry_work.TERMS, *geometry_work.SQUARES])
def test_the_line_of_work_gives_the_answer(kind: str) -> None:
    for problem in problems(kind):
        written = geometry_work.terms(kind, problem.numbers)
        assert written is not None and re.fullmatch(r"[0-9+*/()^-]+", written)
        value = eval(written.replace("^", "**"))
        expected = problem.answer.value ** (2 if kind in geometry_work.SQUARES else 1)
        assert value == pytest.approx(expected, abs=1e-6), (written, problem.numbers)
        shown = {label.text for label in (*problem.figure.lengths, *problem.figure.angles)}
        # Whatever is neither given nor one of the formula's own constants would have to be guessed.
        assert set(re.findall(r"\d+", written)) <= shown | {"2", "3", "4", "5", "6", "8", "90", "180", "360"}


def test_work_names_the_larger_number_first_whatever_the_order() -> None:
    assert geometry_work.solution("segment_sum", (7, 12), 361, "T") == "12+7. T"
    assert geometry_work.solution("segment_sum", (12, 7), 361, "T") == "12+7. T"
    assert geometry_work.solution("hypotenuse", (5, 12), 169, "T") == "12^2+5^2=169. T"
    assert geometry_work.solution("leg", (5, 13), 144, "T") == "13^2-5^2=144. T"
    assert geometry_work.solution("l_shape_area", (6, 9, 2, 4), 0, "T") == "9*6-4*2. T"
    assert geometry_work.solution("rectangle_side", (5, 9), 25, "T") == "T"
    assert {kind for kind in tables.KINDS if geometry_work.terms(kind, (1, 2, 3, 4)) is None} == {
        *(kind.__name__ for kind in tables.LEVELS[0]),
        "square_diagonal",
        "half_square",
        "half_equilateral",
        "equilateral_height",
    }


def test_some_answers_are_radicals() -> None:
    latex = {problem.answer.latex for kind in tables.KINDS for problem in problems(kind, 30)}
    assert any(re.fullmatch(r"\d+\\sqrt\{\d+\}", text) for text in latex)
    assert any(re.fullmatch(r"\\sqrt\{\d+\}", text) for text in latex)
    assert all(re.fullmatch(r"\d+|\d*\\sqrt\{\d+\}", text) for text in latex)


# rows


@pytest.fixture(scope="module")
def rows() -> dict[str, list[tables.GeometryRow]]:
    counts = {"train": 282, "test": 141}
    return {split: tables.make_rows(split, count, side=140, kinds=ALL, seed=0) for split, count in counts.items()}


def test_every_kind_comes_equally_often(rows: dict[str, list[tables.GeometryRow]]) -> None:
    for split, count in {"train": 6, "test": 3}.items():
        kinds = [row.kind for row in rows[split]]
        assert {kinds.count(kind) for kind in tables.KINDS} == {count}
        assert any(first > second for first, second in pairwise(map(list(tables.KINDS).index, kinds))), "not mixed"


def test_train_and_test_are_apart(rows: dict[str, list[tables.GeometryRow]]) -> None:
    numbers: dict[str, set[object]] = {}
    for split, part in rows.items():
        several = {(row.kind, tuple(sorted(row.numbers))) for row in part if len(row.numbers) > 1}
        single = {(row.kind, row.numbers, row.position % 2) for row in part if len(row.numbers) == 1}
        assert several and single
        numbers[split] = several | single
    assert not numbers["train"] & numbers["test"]
    pictures = [row.png for part in rows.values() for row in part]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("given", ["picture", "text"])
def test_what_makes_another_problem(given: tables.Given) -> None:
    """Neither the order of two numbers nor, with two, how the figure is laid."""
    assert all(tables.is_test("a", (n, 7), 0, given) == tables.is_test("a", (7, n), 5, given) for n in range(50))
    part = sum(tables.is_test("a", (n, m), 0, given) for n in range(60) for m in range(n))
    assert 0.08 < part / 1770 < 0.17


@pytest.mark.parametrize("kind", ["square_perimeter", "diameter", "vertical_angle"])
def test_a_single_number_is_held_out_with_how_the_figure_lies(kind: str) -> None:
    held_out = {n: [tables.is_test(kind, (n,), p, "picture") for p in range(8)] for n in range(2, 146)}
    assert all(len(set(ways[0::2])) == len(set(ways[1::2])) == 1 for ways in held_out.values())
    assert sum(all(ways) for ways in held_out.values()) < 8, "numbers that training never shows"
    held_out = {n: [tables.is_test(kind, (n,), p, "text") for p in range(8)] for n in range(2, 146)}
    assert not any(all(ways) for ways in held_out.values()), "the text would tell what the kind is not"
    assert 0.1 < sum(map(sum, held_out.values())) / (8 * 144) < 0.15


def test_the_question_alone_does_not_tell_the_answer(rows: dict[str, list[tables.GeometryRow]]) -> None:
    answers = defaultdict(list)
    for row in rows["train"]:
        answers[re.sub(r"\b[A-Z]{2,3}\b", "AB", row.question)].append(row.answer)
    best = sum(max(map(told.count, told)) for told in answers.values())
    assert best / len(rows["train"]) < 0.25


def test_rows_follow_the_seed(rows: dict[str, list[tables.GeometryRow]]) -> None:
    first, again, other = (tables.make_rows("test", 47, side=140, kinds=ALL, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert not {row.png for row in first} & {row.png for row in other}


def test_levels_bound_the_kinds() -> None:
    assert {tables.LEVEL_OF[kind] for kind in tables.choose_kinds(None, 2, "picture")} == {1, 2}
    assert tables.choose_kinds(None, 4, "picture") == ALL


def test_more_rows_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_TRIES", 3)
    with pytest.raises(ValueError, match=r"train: no new picture of '\w+' in 3 tries; ask for fewer rows"):
        tables.make_rows("train", 2000, side=140, kinds=ALL, seed=0)


def test_the_file_is_read_as_geo3k_and_as_messages(rows: dict[str, list[tables.GeometryRow]], tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    tables.write_rows(rows["train"][:20], "train", path)
    data = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert data[0]["images"][0].size == (140, 140)
    common = {"train_data_paths": str(path), "image_keys": ["images"]}
    geo3k = make_kind(DataConfig.model_validate({**common, "dataset_name": "geo3k"}))
    chat = make_kind(DataConfig.model_validate({**common, "dataset_name": "messages", "messages_key": "messages"}))
    for written, row in zip(pq.read_table(path).to_pylist(), rows["train"], strict=False):
        conversation = geo3k.convert(written)
        assert conversation.answer == row.answer and conversation.question == row.question
        said = chat.convert(written)
        assert conversation.prompt == said.prompt
        assert conversation.messages[-1].parts == (f"Answer: \\boxed{{{row.answer}}}",)
        assert said.answer == tables.worked(row) and said.answer.endswith(f"Answer: \\boxed{{{row.answer}}}")
        assert written["level"] == tables.LEVEL_OF[written["kind"]]
        assert Image.open(io.BytesIO(conversation.images[0]["bytes"])).size == (140, 140)
