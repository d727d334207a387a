"""Reinforcement learning over several turns through the launcher: two steps with a tool that scores, and with one that
shows pictures. The model has random weights; ``tests.calling_envs`` hears calls in what it says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlinf_vlm.envs import crop_zoom, geo3k_tool
from tests.e2e.test_rl import GAP, rollouts
from tests.e2e.test_sft import evaluations, run, steps
from tests.small_run import read_jsonl, rl_tree

TURN = 160
ANSWERS = 24


def config(folder: Path, small_run: Path, **env: object) -> Path:
    """Two steps of 6 prompts x 4 conversations of up to three turns, an evaluation at the end."""
    tree = rl_tree(small_run, "multi_turn", runner__max_steps=2, runner__save_interval=-1)
    tree["algorithm"]["sampling_params"] = {"max_new_tokens": 3 * TURN, "temperature": 1.0}
    tree["algorithm"]["eval_sampling_params"] = {"max_new_tokens": 3 * TURN, "temperature": 1.0, "n": 2}
    tree["env"] = {"max_turns": 3, "max_new_tokens": TURN, "max_observation_tokens": 200, **env}
    path = folder / "multi_turn.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def turns(log: Path) -> list[dict[str, Any]]:
    """All conversations of both steps."""
    return [line for step in (1, 2) for line in rollouts(log, step)]


def check_counts(log: Path) -> None:
    """Engine and trainer agree, and the metrics count what is in the records."""
    for line in steps(log):
        assert line["rollout/logprob_gap"] < GAP
        assert line["train/grad_norm"] > 0
        held = rollouts(log, line["step"])
        assert len(held) == ANSWERS
        for outcome in ("completed", "max_turns", "truncated", "env_error"):
            assert line[f"rollout/{outcome}"] == pytest.approx(
                sum(one["outcome"] == outcome for one in held) / ANSWERS
            ), outcome


def test_a_tool_that_scores(small_run, tmp_path):
    log = tmp_path / "log"
    env = {"name": "tests.calling_envs:scoring", "eval_options": {"tool": False}}
    status, output = run(config(tmp_path, small_run, **env), log)
    assert status == 0, output
    check_counts(log)
    held = turns(log)
    outcomes = Counter(one["outcome"] for one in held)
    assert outcomes["completed"] and not outcomes["env_error"], outcomes
    told = Counter(turn["observation"] for one in held for turn in one["turns"][1:])
    broken = f"The tool call is not valid JSON. {geo3k_tool.CALL_AGAIN}"
    assert set(told) == {geo3k_tool.WRONG, broken}
    for one in held:
        assert (one["outcome"] == "completed") == (one["env_info"].get("score") == 1.0)
        assert [bool(turn["context_ids"]) for turn in one["turns"]] == [place > 0 for place in range(len(one["turns"]))]
    assert len(evaluations(log)) == 2
    evaluated = read_jsonl(log / "eval" / "step_2.jsonl")
    text = yaml.safe_dump(evaluated)
    assert geo3k_tool.WRONG not in text, "the tool tells what is right in an evaluation"
    assert "completed" not in {one.get("outcome") for one in evaluated}, "without the tool, a call is never the end"


def test_a_tool_that_shows_pictures(small_run, tmp_path):
    log = tmp_path / "log"
    env = {"name": "tests.calling_envs:showing", "options": {"min_side": 56, "max_side": 112}}
    status, output = run(config(tmp_path, small_run, **env), log)
    assert status == 0, output
    check_counts(log)
    held = turns(log)
    shown = [turn for one in held for turn in one["turns"][1:] if turn["observation"] == crop_zoom.SHOWN]
    others = [turn for one in held for turn in one["turns"][1:] if turn["observation"] != crop_zoom.SHOWN]
    assert shown and others
    assert all(len(turn["images"]) == 1 for turn in shown) and not any(turn["images"] for turn in others)
    assert len({turn["images"][0] for turn in shown}) > 6, "all are shown the same"
    assert {turn["observation"] for turn in others} <= {
        f"The box is empty: left has to be below right, and top below bottom. {crop_zoom.CALL_AGAIN}",
        f"There is no picture. {crop_zoom.CALL_AGAIN}",  # every seventh row
    }
    assert not any(one["outcome"] == "env_error" for one in held), [one["outcome_detail"] for one in held]
