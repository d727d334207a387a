"""Which answers an evaluation takes, and what it writes and logs: with engines and graders that answer at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.schema import Config
from rlinf_vlm.rollout.records import Answers, PromptRef, Rollout, Sampling, ScoredRollout
from rlinf_vlm.runners.collecting import Collector, PromptStream
from rlinf_vlm.runners.evaluating import evaluate_rows, setting_samplings
from rlinf_vlm.runners.rl import Engines, evaluate
from rlinf_vlm.runners.session import Session
from rlinf_vlm.types import UserError
from tests.rollouts import rollout
from tests.small_run import read_jsonl

MAYE = [
    {"name": "high", "temperature": 1.0, "n": 8, "k": 8},
    {"name": "medium", "temperature": 0.6},
    {"name": "low", "temperature": 0.01, "top_p": 0.001, "top_k": 5},
]


def config(folder: Path, **changes: Any) -> Config:
    algorithm = {"eval_sampling_params": {"max_new_tokens": 7, "n": 2}, "eval_settings": MAYE, **changes}
    return load_config(
        {
            "runner": {"task_type": "reasoning", "logger": {"log_path": str(folder), "logger_backends": []}},
            "data": {"train_data_paths": "a", "eval_data_paths": "b", "test_data_paths": "c", "max_prompt_length": 64},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}},
            "algorithm": algorithm,
        }
    )


class Rollouts:
    """Notes what it is asked; every answer says its temperature, its split and its place in the group."""

    world_size = 2

    def __init__(self) -> None:
        self.asked: list[tuple[str, Sampling, list[PromptRef]]] = []

    def call_each(self, method: str, args: Sequence[tuple[Sequence[PromptRef], Sampling, str]]) -> list[Answers]:
        assert method == "generate"
        _, sampling, split = args[0]
        self.asked.append((split, sampling, [prompt for part, _, _ in args for prompt in part]))
        return [
            Answers(
                rollouts=tuple(
                    rollout(prompt.row, member, text=f"wait {split} {sampling.temperature:g}")
                    for prompt in part
                    for member in range(sampling.n)
                ),
                dropped=(),
                seconds=0.0,
            )
            for part, _, _ in args
        ]


class Graders:
    """Right are greedy answers to even rows, and of the others the second one of a group."""

    world_size = 1

    def call_each(self, method: str, args: Sequence[tuple[Sequence[Rollout]]]) -> list[list[ScoredRollout]]:
        assert method == "score"
        return [[ScoredRollout(rollout=one, reward=float(self.right(one))) for one in part] for (part,) in args]

    def right(self, one: Rollout) -> bool:
        return one.row % 2 == 0 if one.text.endswith(" 0") else one.member == 1


class Sync:
    """Notes the versions that are pushed."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def push(self, version: int) -> float:
        self.versions.append(version)
        return 0.0


def collector(made: Config) -> tuple[Collector, Rollouts]:
    engines = Rollouts()
    return Collector(made, engines, Graders(), PromptStream(made, 5)), engines


def test_every_setting_is_asked_of_every_row_with_seeds_of_its_own(tmp_path):
    made = config(tmp_path)
    asks, engines = collector(made)
    records, figures = evaluate_rows(asks, made, "test", 3)
    samplings = [sampling for _, sampling, _ in engines.asked]
    assert [(one.temperature, one.top_p, one.top_k, one.n) for one in samplings] == [
        (0.0, 1.0, -1, 1),
        (1.0, 1.0, -1, 2),
        (1.0, 1.0, -1, 8),
        (0.6, 1.0, -1, 1),
        (0.01, 0.001, 5, 1),
    ]
    assert {one.max_new_tokens for one in samplings} == {7} and {split for split, _, _ in engines.asked} == {"test"}
    assert all([prompt.row for prompt in prompts] == [0, 1, 2] for _, _, prompts in engines.asked)
    seeds = [tuple(prompt.seed for prompt in prompts) for _, _, prompts in engines.asked]
    assert len(set(seeds)) == 4  # the greedy pass draws nothing, so it may share the seeds of the sampled one
    assert figures["test/accuracy"] == pytest.approx(2 / 3) and figures["test/sampled_accuracy"] == 0.5
    assert figures["test/high/accuracy"] == 1 / 8 and figures["test/high/pass@8"] == 1.0
    assert not {"test/high/pass@1", "test/high/pass@4", "eval/accuracy", "time/eval"} & figures.keys()
    assert figures["test/medium/pass@1"] == figures["test/low/pass@1"] == 0.0
    assert figures["test/low/reflection_ratio"] == 1.0 and figures["time/test"] >= 0
    assert [len(record.settings["high"]) for record in records] == [8, 8, 8]


def test_both_splits_are_written_and_logged_and_the_weights_pushed_once(tmp_path, capsys):
    made = config(tmp_path)
    asks, engines = collector(made)
    sync = Sync()
    with Session(made, "plan") as session:
        evaluate(
            Engines(collector=asks, sync=sync, rows={"train": 5, "eval": 2, "test": 3}),
            made,
            session,
            finished_steps=6,
            epoch=1.25,
        )
    assert sync.versions == [6]
    assert [split for split, _, _ in engines.asked] == ["eval"] * 5 + ["test"] * 5
    of_eval, of_test = read_jsonl(tmp_path / "metrics.jsonl")
    assert of_eval["step"] == of_test["step"] == 6 and of_eval["train/epoch"] == of_test["train/epoch"] == 1.25
    assert of_eval["eval/accuracy"] == 0.5 and of_test["test/accuracy"] == pytest.approx(2 / 3)
    assert not [name for name in of_eval if name.startswith("test/")]
    lines = read_jsonl(tmp_path / "eval" / "test_step_6.jsonl")
    assert len(lines) == 3 and len(read_jsonl(tmp_path / "eval" / "step_6.jsonl")) == 2
    assert lines[0]["settings"]["low"][0]["text"] == "wait test 0.01" and len(lines[0]["sampled"]) == 2
    told = capsys.readouterr().out
    assert "evaluation after step 6:" in told and "test after step 6:" in told
    assert "pass@8" in told and "reflection_ratio" not in told and "_low" not in told


def test_without_test_rows_there_is_one_evaluation(tmp_path):
    made = config(tmp_path, eval_settings=[])
    asks, engines = collector(made)
    with Session(made, "plan") as session:
        evaluate(Engines(collector=asks, sync=Sync(), rows={"eval": 2}), made, session, finished_steps=0)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert "train/epoch" not in line and len(engines.asked) == 2
    assert "settings" not in json.dumps(read_jsonl(tmp_path / "eval" / "step_0.jsonl"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"name": "a", "temperature": 1}, {"name": "a", "temperature": 0.5}], "two settings have one name"),
        ([{"name": "a/b", "temperature": 1}], "cannot be part of a metric's name"),
        ([{"name": "a"}], r"algorithm.eval_settings.0.temperature: required but not given. Divides"),
        ([{"name": "a", "temperature": 0.001}], "temperature=0.001 is below 0.01"),
        ([{"name": "a", "temperature": 0, "n": 2}], "temperature=0 would give n=2 equal answers"),
        ([{"name": "a", "temperature": 1, "n": 4, "k": 8}], "k=8 is more than the n=4 answers"),
        ([{"name": "a", "temperature": 1, "top_k": 0}], r"eval_settings.0.top_k=0 leaves no token"),
        ([{"name": "a", "temperature": 1, "topp": 0.5}], "did you mean algorithm.eval_settings.0.top_p"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        config(tmp_path, eval_settings=settings)
    assert "algorithm.eval_settings" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_setting_may_be_greedy(tmp_path):
    made = config(tmp_path, eval_settings=[{"name": "greedy", "temperature": 0}])
    assert setting_samplings(made)["greedy"].temperature == 0
