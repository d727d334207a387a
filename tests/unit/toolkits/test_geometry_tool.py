"""The demo of multi-turn reinforcement learning: its conversations are what the environment would make of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from rlinf_vlm.envs.geo3k_tool import SWITCHED_OFF, WRONG, build_env
from rlinf_vlm.envs.protocol import EnvSample
from rlinf_vlm.rewards.math import grade
from toolkits.data import demo_folder, geometry_tool, make_demo
from toolkits.data.geometry_demo import RL_SETTINGS, make_splits

SETTINGS = replace(RL_SETTINGS, train_rows=300, test_rows=40)
COUNT = SETTINGS.train_rows


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tool") / "demo"
    assert make_demo.make_geometry_tool(out, SETTINGS) is True
    assert make_demo.make_geometry_tool(out, SETTINGS) is False
    return out / geometry_tool.GEOMETRY_TOOL


@pytest.fixture(scope="module")
def rows(demo: Path) -> list[dict[str, Any]]:
    return pq.read_table(demo / "train.parquet").to_pylist()


def test_the_environment_says_what_the_conversations_have_it_say(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        said = [(message["role"], message["content"]) for message in row["messages"]]
        assert said[0] == ("user", row["problem"])
        off = ("user", SWITCHED_OFF) in said
        env = build_env(sample=EnvSample(row=0, question="", answer=row["answer"]), args={"tool": not off})
        for place in range(1, len(said), 2):
            assert said[place][0] == "assistant"
            observation, done, _ = env.step(said[place][1])
            if place + 1 < len(said):
                assert not done and said[place + 1] == ("user", observation)
        assert done or said[-2:-1] == [("user", WRONG)], "it ends before it is over"


def test_the_teacher_is_careless_at_first_and_again(rows: list[dict[str, Any]]) -> None:
    first = [grade(row["messages"][1]["content"], row["answer"]) for row in rows]
    again = [row for row in rows if row["messages"][2:3] and row["messages"][2]["content"] == WRONG]
    second = [grade(row["messages"][3]["content"], row["answer"]) for row in again]
    off = [row for row in rows if row["messages"][2:3] and row["messages"][2]["content"] == SWITCHED_OFF]
    # Expected 0.4 of 300, 0.4 of about 126 and 0.3 of 300, each within four standard deviations.
    assert abs(sum(first) / COUNT - 0.4) < 0.12
    assert abs(sum(second) / len(second) - 0.4) < 0.18
    assert abs(len(off) / COUNT - geometry_tool.OFF) < 0.11
    for row in off:
        answer = row["taught"]
        assert row["messages"][3]["content"] == f"Answer: \\boxed{{{answer}}}"


def test_a_turn_is_short_and_what_it_says_is_read_back(demo: Path, rows: list[dict[str, Any]]) -> None:
    tokenizer = AutoProcessor.from_pretrained(demo / "model").tokenizer
    for row in rows:
        for message in row["messages"]:
            ids = tokenizer.encode(message["content"])
            assert tokenizer.decode(ids) == message["content"]
            assert len(ids) + 1 <= 40, message["content"]


def test_the_problems_are_those_of_the_single_turn_demo(demo: Path, rows: list[dict[str, Any]]) -> None:
    for split, made in make_splits(SETTINGS).items():
        table = pq.read_table(demo / f"{split}.parquet").to_pylist()
        assert [(row["answer"], row["taught"], row["images"][0]["bytes"]) for row in table] == [
            (row.answer, row.taught, row.png) for row in made
        ]
        assert [row["messages"] for row in table] == [geometry_tool.talk(row, SETTINGS.careless) for row in made]


def test_guesses_are_wrong_and_one_kind_s_answers() -> None:
    for row in make_splits(SETTINGS)["test"]:
        guesses = geometry_tool.guesses(row)
        assert len(guesses) == 4 and not any(grade(guess, row.answer) for guess in guesses)


def test_other_words_of_the_environment_make_it_anew(demo: Path) -> None:
    marker = demo / demo_folder.MARKER
    assert demo_folder.is_made_from(demo, geometry_tool.tool_made_from(SETTINGS))
    state = json.loads(marker.read_text())
    assert (state["wrong"], state["switched_off"]) == (WRONG, SWITCHED_OFF)
    assert not demo_folder.is_made_from(demo, {**geometry_tool.tool_made_from(SETTINGS), "wrong": "No."})
