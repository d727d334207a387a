"""What a run logs, and what is computed from its files afterwards: the same numbers."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.evaluation.__main__ import main
from rlinf_vlm.evaluation.recorded import run_figures
from rlinf_vlm.rollout.records import Answers, PromptRef, Rollout, Sampling, ScoredRollout
from rlinf_vlm.rollout.trained import TrainedStep
from rlinf_vlm.runners.collecting import Collector, PromptStream
from rlinf_vlm.runners.rl import Engines, train
from rlinf_vlm.runners.session import Session
from tests.rollouts import rollout
from tests.small_run import read_jsonl

ROWS = {"train": 10, "eval": 7, "test": 5}
PIECES = (
    "Wait, ",
    "let me verify. ",
    "so x is 5, ",
    "the angle is 30. ",
    "not yet. ",
    "\ud83d \x00 \u2028 ",
    "check  again ",
)
SPLITS = ("eval/", "test/")
FROM_ANSWERS = ("rollout/accuracy", "rollout/repe", "rollout/reflection", "rollout/correct_", "rollout/response_length")


class Actor:
    """Trains nothing."""

    world_size = 2

    def call_each(self, method: str, args: Sequence[Any]) -> list[TrainedStep]:
        assert method == "train_rollouts"
        return [TrainedStep(metrics={"train/loss": 0.5, "train/grad_norm": 1.0}, answers=()) for _ in args]


class Talkers:
    """Engines whose answers are put together by chance; some are cut at the limit."""

    world_size = 2

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def call_each(self, method: str, args: Sequence[tuple[Sequence[PromptRef], Sampling, str]]) -> list[Answers]:
        return [
            Answers(
                rollouts=tuple(self._answer(prompt, member) for prompt in part for member in range(sampling.n)),
                dropped=(),
                seconds=0.0,
            )
            for part, sampling, _ in args
        ]

    def _answer(self, prompt: PromptRef, member: int) -> Rollout:
        text = "".join(self._draw.choices(PIECES, k=self._draw.randrange(9)))
        cut = "length" if self._draw.random() < 0.2 else "stop"
        length = self._draw.randrange(1, 9)
        return rollout(prompt.group, member, row=prompt.row, text=text, length=length, finish_reason=cut)


class Graders:
    """By chance; some answers cannot be judged, and one in ten has a part that is no short decimal."""

    world_size = 1

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def call_each(self, method: str, args: Sequence[tuple[Sequence[Rollout]]]) -> list[list[ScoredRollout]]:
        return [[self._score(one) for one in part] for (part,) in args]

    def _score(self, one: Rollout) -> ScoredRollout:
        status = "timeout" if self._draw.random() < 0.1 else "ok"
        reward = self._draw.choice([0.0, 1.0, 0.7 + 0.2 + 0.1, 1 / 3])
        return ScoredRollout(rollout=one, reward=reward, status=status, parts={"math": self._draw.random()})


class Sync:
    """Weights that come from nowhere."""

    def push(self, version: int) -> float:
        return 0.0

    def rest(self) -> None:
        """Nothing sleeps."""


class Unsaved:
    """Checkpoints of a run that saves none."""

    def collect(self, step: int) -> None:
        """There is nothing to collect."""

    def finish(self, step: int) -> None:
        """There is nothing to wait for."""


def config(folder: Path) -> Config:
    settings = [{"name": "high", "temperature": 1.0, "n": 8, "k": 8}, {"name": "low", "temperature": 0.01}]
    data = {"train_data_paths": "a", "eval_data_paths": "b", "test_data_paths": "c", "max_prompt_length": 64}
    return load_config(
        {
            "runner": {
                "task_type": "reasoning",
                "max_steps": 3,
                "val_check_interval": 2,
                "logger": {"log_path": str(folder), "logger_backends": []},
            },
            "data": {**data, "rollout_batch_size": 4},
            "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "m"}, "optim": {"lr_warmup_steps": 0}},
            "algorithm": {
                "group_size": 4,
                "overlong": {"buffer": 2, "factor": 0.5},
                "sampling_params": {"max_new_tokens": 8},
                "eval_sampling_params": {"n": 4, "max_new_tokens": 8},
                "eval_settings": settings,
                "reflection_words": ["wait", "verify", "yet", "check again"],
            },
        }
    )


def record(folder: Path, seed: int = 0) -> Path:
    """A run of three steps with evaluations before the first, after the second and at the end."""
    made = config(folder)
    folder.mkdir(parents=True)
    collector = Collector(made, Talkers(seed), Graders(seed), PromptStream(made, ROWS["train"]))
    with Session(made, "plan") as session:
        engines = Engines(collector=collector, sync=Sync(), rows=ROWS)
        train(Actor(), engines, made, resolve_schedule(made, ROWS["train"]), session, Unsaved())
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recorded run."""
    return record(tmp_path_factory.mktemp("recorded") / "run")


def logged(folder: Path) -> dict[int, dict[str, float]]:
    """Step -> all that was logged of it."""
    found: dict[int, dict[str, float]] = {}
    for line in read_jsonl(folder / "metrics.jsonl"):
        found.setdefault(line["step"], {}).update(line)
    return found


def test_the_files_give_the_numbers_that_were_logged(run):
    found, told = run_figures(run), logged(run)
    assert list(found.steps) == [1, 2, 3] and found.words == ("wait", "verify", "yet", "check again")
    for step, figures in found.steps.items():
        assert figures == {name: told[step][name] for name in figures}
        of_answers = {name for name in told[step] if name.startswith((*FROM_ANSWERS, "reflection"))}
        assert of_answers <= figures.keys() and "reflection_answers/check_again" in figures
    assert list(found.evaluations) == [(split, step) for step in (0, 2, 3) for split in ("eval", "test")]
    for (split, step), figures in found.evaluations.items():
        assert figures == {name: value for name, value in told[step].items() if name.startswith(f"{split}/")}
        assert {f"{split}/high/pass@8_low", f"{split}/low/pass@1", f"{split}/pass@4"} <= figures.keys()
        assert f"{split}/high/pass@4" not in figures
    assert found.epochs == {0: 0.0, 1: 0.4, 2: 0.8, 3: 1.2}


def test_without_the_files_there_is_what_was_logged(run, tmp_path):
    for name in ("metrics.jsonl", "config.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    whole, left = run_figures(run), run_figures(tmp_path)
    assert left.steps == whole.steps and left.evaluations == whole.evaluations and left.epochs == whole.epochs


def test_other_words_are_looked_for_in_what_was_recorded(run):
    found = run_figures(run, ("angle",))
    assert found.steps[1]["reflection/angle"] > 0 and "reflection/wait" not in found.steps[1]
    assert found.steps[1]["rollout/accuracy"] == run_figures(run).steps[1]["rollout/accuracy"]
    assert not [name for name in run_figures(run, ()).steps[1] if "reflection" in name]


def test_the_command_writes_tables_and_json(run, tmp_path):
    """In a process of its own, that loads no torch."""
    other = record(tmp_path / "other", seed=1)
    code = (
        "import sys; from rlinf_vlm.evaluation.__main__ import main; status = main(); "
        "print('torch' in sys.modules, 'transformers' in sys.modules); sys.exit(status)"
    )
    arguments = [str(run), str(other), "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False" and done.stderr == ""
    for wanted in (f"{run}: training answers", "check again", "2 runs, mean ± standard deviation: pass@k", "high", "["):
        assert wanted in done.stdout
    tree = json.loads((tmp_path / "out.json").read_text())
    first, second = tree["runs"]
    assert first["folder"] == str(run) and [step["epoch"] for step in first["steps"]] == [0.4, 0.8, 1.2]
    assert first["steps"][0]["metrics"] == run_figures(run).steps[1]
    pair = [one["evaluations"][2]["metrics"]["eval/high/pass@8"] for one in (first, second)]
    together = tree["over_runs"]["evaluations"][2]
    assert (together["split"], together["step"]) == ("eval", 2)
    mean, deviation = sum(pair) / 2, abs(pair[0] - pair[1]) / 2**0.5
    assert together["metrics"]["eval/high/pass@8"] == pytest.approx({"mean": mean, "deviation": deviation, "runs": 2})


def test_one_run_has_no_deviation(run, tmp_path, capsys):
    assert main([str(run), "--out", str(tmp_path / "out.json"), "--words"]) == 0
    tree = json.loads((tmp_path / "out.json").read_text())
    assert tree["over_runs"] is None and tree["runs"][0]["words"] == []
    assert "±" not in capsys.readouterr().out


def test_what_is_not_finite_is_not_there(run, tmp_path, capsys):
    """Neither in the tables and the JSON, nor in the spread over runs."""
    other = shutil.copytree(run, tmp_path / "other")
    with (other / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "train/epoch": NaN, "eval/own": Infinity}\n{"step": 4, "rollout/turns": NaN}\n')
    assert main([str(run), str(other), "--out", str(tmp_path / "out.json")]) == 0
    assert "nan" not in capsys.readouterr().out
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", (tmp_path / "out.json").read_text()))


def test_a_later_start_may_have_asked_for_more_answers(run, tmp_path):
    """Of an evaluation with fewer there is the pass@k that it has answers for."""
    other = shutil.copytree(run, tmp_path / "other")
    text = (other / "config.yaml").read_text()
    (other / "config.2.yaml").write_text(text.replace("k: 8", "k: 16"))
    (tmp_path / "other" / "config.3.yaml").write_text("algorithm: {reflection_words: null, eval_settings: null}\n")
    found = run_figures(other).evaluations["eval", 2]
    assert {f"eval/high/pass@{k}" for k in (1, 2, 4, 8)} <= found.keys() and "eval/high/pass@16" not in found
    assert text != (other / "config.2.yaml").read_text()


def cut_rollouts(folder: Path) -> None:
    file = folder / "rollouts" / "step_2.jsonl"
    file.write_bytes(file.read_bytes()[:-9])


def cut_evaluation(folder: Path) -> None:
    file = folder / "eval" / "test_step_3.jsonl"
    file.write_bytes(file.read_bytes()[:-9])


def odd_evaluation(folder: Path) -> None:
    (folder / "eval" / "step_0.jsonl").write_text('{"row": 0, "prediction": "", "reward": "1", "status": "ok"}\n')


def no_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text("a: [")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_rollouts, r"step_2.jsonl, line 16: not a recorded rollout"),
        (cut_evaluation, r"test_step_3.jsonl, line 5: not a record of an evaluation"),
        (odd_evaluation, r"step_0.jsonl, line 1: not a record of an evaluation (no 'correct')"),
        (no_yaml, "config.yaml is not the config of a run"),
    ],
)
def test_files_that_cannot_be_read_are_told_in_one_line(tmp_path, capsys, spoil, message):
    folder = record(tmp_path / "run")
    capsys.readouterr()
    spoil(folder)
    assert main([str(folder)]) == 2
    told = capsys.readouterr()
    assert message in told.err and len(told.err.splitlines()) == 1 and told.out == ""


def test_folders_that_are_no_runs(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "nowhere")], "no such folder; give the folder of a run"),
        ([str(tmp_path / "empty")], "holds no rollouts/step_N.jsonl"),
        ([str(run), str(run / "..") + "/run"], "is given twice"),
        ([str(run), "--words", "wait", "WAIT"], "give each word once"),
        ([str(run), "--out", str(tmp_path / "no" / "file.json")], "cannot be written to"),
    ):
        assert main(arguments) == 2
        told = capsys.readouterr()
        assert message in told.err and len(told.err.splitlines()) == 1 and told.out == ""
