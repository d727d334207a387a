r"""The geometry demo as parquet: drawn problems in the layout of geometry3k, train and test apart.

    kinds (level 1 to 4) -> Problem -> drawn -> GeometryRow -> parquet

    problem "<image>Find $x$."   answer "5\sqrt{3}"   images [{bytes, path}]   (data.dataset_name=geo3k)
    messages                     the same as a chat, with a line of work before the boxed answer
                                                                               (data.dataset_name=messages)
    taught                       the answer, or what a careless teacher takes for it (``make_rows``)
    kind, level                  which of ``KINDS``; 1 (read off the picture) to 4 (Pythagoras, radicals)

Invariants: train and test share no problem, by a digest: two or more given numbers, whatever their order, are of one
split only; a single number, of which there are few, together with whether the figure lies or stands (a number that
training never shows would be learned as one that does not occur; more in ``is_test``). No picture comes twice with the
same question; every kind comes equally often; the same seed gives the same rows. What is given stands in the picture
and nowhere in the text, or (``given="text"``) the other way round. Does not know tokens or models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rlinf_vlm.data.kinds.geo3k import target_text
from toolkits.data.geometry_drawing import POSITIONS, Crowded, draw
from toolkits.data.geometry_easy import LEVEL_1, LEVEL_2
from toolkits.data.geometry_figure import Problem
from toolkits.data.geometry_hard import LEVEL_4
from toolkits.data.geometry_sums import LEVEL_3
from toolkits.data.geometry_text import fits, is_common, with_letters
from toolkits.data.geometry_work import solution

Given = Literal["picture", "text"]
"""Where the values stand."""
Chat = list[dict[str, str]]
"""Messages: ``{"role", "content"}`` each."""
LEVELS = (LEVEL_1, LEVEL_2, LEVEL_3, LEVEL_4)
KINDS: Mapping[str, Callable[[random.Random], Problem]] = {kind.__name__: kind for kinds in LEVELS for kind in kinds}
"""Every kind of problem by its name, easy to hard."""
LEVEL_OF = {kind.__name__: level for level, kinds in enumerate(LEVELS, start=1) for kind in kinds}

TEST_PART = 8
"""One in so many sets of numbers is a test's."""
LETTERS = ("ABCDEF", "JKLMNP", "PQRSTU", "UVWXYZ")
CENTRE = "O"
PLACES = 20
"""Sizes and places in which a problem is tried before its numbers are drawn anew."""
MOST_TRIES = 4000
"""Drawings for one row before a kind counts as used up; a kind has some hundred pictures at least."""
ROW_GROUP = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryRow:
    """One problem. position: how its figure is laid; question: without its picture; answer: LaTeX; taught: what a
    teacher says is the answer; square: of the answer; png: the file's bytes."""

    kind: str
    numbers: tuple[int, ...]
    position: int
    question: str
    answer: str
    taught: str
    square: int
    png: bytes


def is_test(kind: str, numbers: Sequence[int], position: int, given: Given) -> bool:
    """Whether a problem belongs to the test: by its numbers, in any order; a single one also by how the figure lies.

    With values in the picture, lying or standing is all that counts: mirrored, or turned by half, a symmetric figure is
    the same figure. In the text, any of the eight ways does: were a number held out with all pictures of a kind, the
    text would tell what the kind is not.
    """
    way = position if given == "text" else position % 2
    key = f"{kind} {sorted(numbers)}" if len(numbers) > 1 else f"{kind} {numbers[0]} at {way}"
    return hashlib.sha256(key.encode()).digest()[0] % TEST_PART == 0


def make_rows(
    split: str, count: int, *, side: int, kinds: Sequence[str], seed: int, given: Given = "picture", careless: float = 0
) -> list[GeometryRow]:
    """``count`` rows of ``split`` ("train" or "test") in mixed order, each of ``kinds`` equally often.

    careless: the part of the rows (0 to 1) in which the teacher says the given number instead of the answer.
    Raises ValueError where ``count`` is more than the kinds have different pictures.
    """
    rng = random.Random(f"{split}-{seed}")
    seen: set[tuple[str, bytes]] = set()
    rows = [_new_row(kinds[index % len(kinds)], split, side, rng, seen, given) for index in range(count)]
    rng.shuffle(rows)
    return [replace(row, taught=str(row.numbers[0])) if rng.random() < careless else row for row in rows]


def choose_kinds(names: str | None, max_level: int, given: Given) -> tuple[str, ...]:
    """The kinds in ``names`` (with commas between), or all up to ``max_level``; with values in the text, those that
    name no points in the question. Raises ValueError for a name that is none of them.
    """
    usable = [kind for kind in KINDS if given == "picture" or fits(KINDS[kind](random.Random(0)))]
    if names is None:
        return tuple(kind for kind in usable if LEVEL_OF[kind] <= max_level)
    chosen = tuple(names.split(","))
    for name in chosen:
        if name not in usable:
            raise ValueError(f"--kinds: {name!r} is no kind with --given={given}; take some of {', '.join(usable)}")
    return chosen


def _new_row(
    kind: str, split: str, side: int, rng: random.Random, seen: set[tuple[str, bytes]], given: Given
) -> GeometryRow:
    for _ in range(MOST_TRIES):
        problem = KINDS[kind](rng)
        position = rng.randrange(POSITIONS)
        if is_test(kind, problem.numbers, position, given) != (split == "test"):
            continue
        if given == "text":
            if not is_common(problem):
                continue
            problem = with_letters(problem, rng)
        row = _drawn(kind, problem, position, side, rng)
        if row is not None and (row.question, row.png) not in seen:
            seen.add((row.question, row.png))
            return row
    raise ValueError(f"{split}: no new picture of {kind!r} in {MOST_TRIES} tries; ask for fewer rows")


def _drawn(kind: str, problem: Problem, position: int, side: int, rng: random.Random) -> GeometryRow | None:
    """The row of a problem; None where its labels have no room."""
    named = rng.choice(LETTERS)
    others = [name for name in problem.figure.names if name != CENTRE]
    letters = {CENTRE: CENTRE, **dict(zip(others, named, strict=False))}
    for _ in range(PLACES):
        try:
            drawing = draw(problem.figure, letters, side, rng, position)
        except Crowded:
            continue
        file = BytesIO()
        drawing.image.save(file, format="PNG")
        return GeometryRow(
            kind=kind,
            numbers=problem.numbers,
            position=position,
            question=problem.question.format(**letters),
            answer=problem.answer.latex,
            taught=problem.answer.latex,
            square=problem.answer.factor**2 * problem.answer.radicand,
            png=file.getvalue(),
        )
    return None


def worked(row: GeometryRow) -> str:
    r"""What the assistant says: a line of work, where the kind needs one, and ``Answer: \boxed{...}``."""
    return solution(row.kind, row.numbers, row.square, target_text(row.answer))


def asked(row: GeometryRow) -> str:
    """What the user says: the problem behind the place of its picture."""
    return f"<image>{row.question}"


def one_turn(row: GeometryRow) -> Chat:
    """The problem, and the assistant's worked answer."""
    return [{"role": "user", "content": asked(row)}, {"role": "assistant", "content": worked(row)}]


def columns_of(rows: Sequence[GeometryRow], split: str, chat: Callable[[GeometryRow], Chat]) -> dict[str, list[Any]]:
    """Columns problem, answer, taught, images, messages, kind, level; one entry a row. chat: of a row's messages."""
    return {
        "problem": [asked(row) for row in rows],
        "answer": [row.answer for row in rows],
        "taught": [row.taught for row in rows],
        "images": [[{"bytes": row.png, "path": f"{split}_{number}.png"}] for number, row in enumerate(rows)],
        "messages": [chat(row) for row in rows],
        "kind": [row.kind for row in rows],
        "level": [LEVEL_OF[row.kind] for row in rows],
    }


def write_rows(
    rows: Sequence[GeometryRow], split: str, path: Path, chat: Callable[[GeometryRow], Chat] = one_turn
) -> None:
    """Writes ``rows`` with the feature types of ``datasets`` in the schema's metadata. chat: of a row's messages."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    features = Features(
        {
            "problem": text,
            "answer": text,
            "taught": text,
            "images": List(Image()),
            "messages": List({"role": text, "content": text}),
            "kind": text,
            "level": Value("int64"),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns_of(rows, split, chat), schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=ROW_GROUP)
