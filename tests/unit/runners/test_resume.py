"""What a resumed run may change, and where its weights come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlinf_vlm.checkpoints import Checkpoint, open_checkpoint
from rlinf_vlm.config.load import load_config
from rlinf_vlm.config.resolve import resolve_schedule
from rlinf_vlm.config.schema import Config
from rlinf_vlm.runners.resume import Origin, check_same, describe, find_origin, first_weights, what_matters
from rlinf_vlm.types import UserError
from tests.small_run import tree
from tests.unit.test_checkpoints import write

ROWS = 64


@pytest.fixture(scope="module")
def base(small_run) -> Path:
    return small_run


def config(base: Path, **changes) -> Config:
    return load_config(tree(base, **changes))


@pytest.fixture
def checkpoint(base, tmp_path):
    """The checkpoint after three steps of the config without changes."""
    schedule = resolve_schedule(config(base), ROWS)
    described = describe(config(base), schedule, 3)
    folder = tmp_path / "logs" / "run1" / "sft" / "checkpoints" / "global_step_3"
    return open_checkpoint(write(folder, described.pop("saved_at"), **{**described, "step": 3}))


def test_the_description(base):
    state = describe(
        config(base, runner__max_epochs=2, runner__max_steps=-1),
        resolve_schedule(config(base, runner__max_epochs=2, runner__max_steps=-1), ROWS),
        5,
    )
    assert (state["step"], state["samples"], state["epoch"], state["train_rows"]) == (5, 80, 1, ROWS)
    assert json.loads(json.dumps(state)) == state, "JSON gives it back as it is"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"actor__micro_batch_size": 2},
        {"actor__packing": True},
        {"actor__fsdp_config__sharding_strategy": "no_shard"},
        {"runner__max_steps": 9},
        {"data__num_workers": 3},
        {"data__on_bad_row": "drop"},
        {"actor__model__lora_rank": 4},
        {"cluster__cpu_workers_per_node": 2},
    ],
)
def test_what_may_change(base, checkpoint, changes):
    hard = what_matters(config(base, **changes), ROWS)
    assert hard == checkpoint.state["matters"]
    check_same(config(base, **changes), checkpoint, ROWS)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"actor__global_batch_size": 32}, "actor.global_batch_size=32: "),
        ({"actor__seed": 1}, "actor.seed=1: "),
        ({"actor__model__is_lora": True}, "actor.model.is_lora=true: "),
        ({"data__shuffle": False}, "data.shuffle=false: "),
        ({"data__max_pixels": 1000}, "data.max_pixels=1000: "),
        ({"data__system_prompt": "Be brief."}, 'data.system_prompt="Be brief.": '),
        ({"actor__model__precision": "bf16"}, 'actor.model.precision="bf16": '),
        ({"actor__model__freeze": {"vision_tower": True}}, "actor.model.freeze.vision_tower=true: "),
        ({"actor__fsdp_config__mixed_precision__param_dtype": "bf16"}, "mixed_precision.param_dtype="),
    ],
)
def test_what_may_not(base, checkpoint, changes, line):
    with pytest.raises(UserError) as caught:
        check_same(config(base, **changes), checkpoint, ROWS)
    assert line in str(caught.value) and "runner.resume_force=true" in str(caught.value)
    forced = check_same(config(base, runner__resume_force=True, **changes), checkpoint, ROWS)
    assert len(forced) == 1, "what was forced is told"


REASONING = {
    "runner__task_type": "reasoning",
    "data__max_prompt_length": 200,
    "data__rollout_batch_size": 4,
    "algorithm__group_size": 4,
    "actor__global_batch_size": 16,
}


def saved_rl(base: Path, folder: Path, samples: int = 12, first: str | None = None, **changes: Any) -> Checkpoint:
    """The checkpoint after three steps of reinforcement learning."""
    made = config(base, **{**REASONING, **changes})
    state = describe(made, resolve_schedule(made, ROWS), 3, samples, first)
    return open_checkpoint(write(folder / "global_step_3", state.pop("saved_at"), **state))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algorithm__group_size": 8, "actor__global_batch_size": 32}, "algorithm.group_size=8: "),
        ({"algorithm__adv_type": "rloo"}, 'algorithm.adv_type="rloo": '),
        ({"algorithm__sampling_params": {"temperature": 0.5}}, "algorithm.sampling_params.temperature=0.5: "),
        ({"algorithm__kl_beta": 0.1}, "algorithm.kl_beta=0.1: "),
        ({"reward": {"name": "geo3k"}}, 'reward.name="geo3k": '),
        ({"reward": {"options": {"tolerance": 0.05}}}, 'reward.options={"tolerance": 0.05}: '),
        ({"data__rollout_batch_size": 8, "actor__global_batch_size": 32}, "data.rollout_batch_size=8: "),
        ({"data__prompt_suffix": "Think."}, 'data.prompt_suffix="Think.": '),
        ({"runner__task_type": "sft"}, 'runner.task_type="sft": '),
    ],
)
def test_what_may_not_change_in_reinforcement_learning(base, tmp_path, changes, line):
    with pytest.raises(UserError) as caught:
        check_same(config(base, **{**REASONING, **changes}), saved_rl(base, tmp_path), ROWS)
    assert line in str(caught.value)


def test_engines_and_evaluation_may_change_in_reinforcement_learning(base, tmp_path):
    changes = {
        "rollout": {"max_num_seqs": 8, "gpu_memory_utilization": 0.3, "max_logprob_gap": 0.1, "enforce_eager": True},
        "algorithm__eval_sampling_params": {"n": 4, "temperature": 0.6, "max_new_tokens": 99},
        "algorithm__eval_settings": [{"name": "low", "temperature": 0.01}],
        "algorithm__reflection_words": ["wait"],
        "data__test_data_paths": str(base / "test"),
        "reward": {"num_workers": 7, "time_limit": 3.0},
        "runner__val_check_interval": 7,
        "data__eval_data_paths": str(base / "test"),
    }
    check_same(config(base, **{**REASONING, **changes}), saved_rl(base, tmp_path), ROWS)


def test_prompts_asked_besides_move_the_cursor_and_not_the_end(base, tmp_path):
    """Dynamic sampling took 40 prompts for 3 steps of 4: the run goes on at the 41st and is as long as it was."""
    made = config(base, **REASONING, algorithm__dynamic_sampling={"enabled": True}, runner__max_epochs=1)
    whole = resolve_schedule(made, ROWS)
    origin = Origin(weights=tmp_path, step=3, resumed=saved_rl(base, tmp_path, samples=40))
    resumed = resolve_schedule(made, ROWS, origin.start)
    assert (resumed.start.samples, resumed.start.step) == (40, 3)
    assert (resumed.total_steps, resumed.lr_horizon) == (whole.total_steps, whole.lr_horizon)


def test_what_a_run_began_with_is_known_through_all_its_starts(base, tmp_path):
    """The third start resumes from the second, whose config has no ckpt_path."""
    made, given = config(base, **REASONING, algorithm__kl_beta=0.1), tmp_path / "sft" / "full_weights.pt"
    assert first_weights(made, None) is None
    began = first_weights(made, Origin(weights=given, step=0))
    assert began == str(given)
    second = Origin(weights=tmp_path, step=3, resumed=saved_rl(base, tmp_path / "2", first=began))
    with pytest.raises(UserError, match="not there any more"):
        first_weights(made, second)
    assert first_weights(config(base, **REASONING), second) == began, "no reference is made, none has to be there"
    given.parent.mkdir()
    given.touch()
    assert first_weights(made, second) == began
    third = Origin(weights=tmp_path, step=3, resumed=saved_rl(base, tmp_path / "3", first=first_weights(made, second)))
    assert first_weights(made, third) == began
    assert first_weights(made, Origin(weights=tmp_path, step=3, resumed=saved_rl(base, tmp_path / "0"))) is None


def test_every_difference_has_a_line(base, checkpoint):
    with pytest.raises(UserError) as caught:
        check_same(config(base, actor__seed=1, data__shuffle=False), checkpoint, ROWS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 and lines[-1].endswith("set these 2 back, or set runner.resume_force=true")


def test_other_rows_are_other_rows_and_a_moved_folder_is_not(base, checkpoint, tmp_path):
    shutil.copytree(base / "train", tmp_path / "moved")
    shutil.copytree(base / "model", tmp_path / "model")
    moved = {"data__train_data_paths": str(tmp_path / "moved"), "actor__model__model_path": str(tmp_path / "model")}
    assert check_same(config(base, **moved), checkpoint, ROWS)
    with (tmp_path / "moved" / "part.parquet").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"data.train_data_paths \(files\)="):
        check_same(config(base, **moved), checkpoint, ROWS)
    with pytest.raises(UserError, match=r"data.train_data_paths \(rows\)=65"):
        check_same(config(base), checkpoint, 65)
    text = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError, match="config.json, weights"):
        check_same(config(base, actor__model__model_path=str(tmp_path / "model")), checkpoint, ROWS)


def test_rows_that_are_not_known_yet_are_no_difference(base, checkpoint):
    check_same(config(base), checkpoint, None)


def test_a_changed_learning_rate_is_told(base, checkpoint):
    assert check_same(config(base, actor__optim__lr=0.5), checkpoint, ROWS) == ["actor.optim.lr was 0.001, is 0.5"]


def test_auto_looks_beside_a_new_run_folder_and_into_a_fixed_one(base, checkpoint, tmp_path):
    new = {"runner__logger": {"log_path": str(tmp_path / "logs" / "run2")}, "runner__resume_dir": "auto"}
    origin, _ = find_origin(config(base, **new), neighbours=True)
    assert origin.resumed == checkpoint and origin.start.samples == 48
    origin, notes = find_origin(config(base, **new), neighbours=False)
    assert origin is None and "there is no finished checkpoint" in notes[-1]
    fixed = {**new, "runner__logger": {"log_path": str(tmp_path / "logs" / "run1")}}
    assert find_origin(config(base, **fixed), neighbours=False)[0].resumed == checkpoint
    other = {**new, "runner__logger": {**new["runner__logger"], "experiment_name": "other"}}
    assert find_origin(config(base, **other), neighbours=True)[0] is None


def test_going_back_is_told(base, checkpoint):
    """A kill before the next save would else bring auto to the branch that was given up, without a word."""
    named = {"runner__resume_dir": str(checkpoint.folder)}
    assert find_origin(config(base, **named), neighbours=True)[1] == []
    later = write(checkpoint.folder.with_name("global_step_6"), checkpoint.saved_at + 1)
    origin, (note,) = find_origin(config(base, **named), neighbours=True)
    assert origin.step == 3 and note.startswith(f"{later} was saved later")


def test_an_evaluation_takes_the_weights_alone(base, checkpoint, tmp_path):
    only = {"data__train_data_paths": None}
    origin, _ = find_origin(config(base, runner__resume_dir=str(checkpoint.folder), **only), neighbours=True)
    assert origin.resumed is None and (origin.weights, origin.step) == (checkpoint.dcp, 3)
    with pytest.raises(UserError, match="nothing to evaluate"):
        find_origin(config(base, runner__resume_dir="auto", **only), neighbours=False)


def test_weights_by_path(base, checkpoint, tmp_path):
    def found(path: Path):
        return find_origin(config(base, runner__ckpt_path=str(path)), neighbours=True)[0]

    assert found(checkpoint.folder).weights == checkpoint.dcp and found(checkpoint.folder).step == 3
    assert found(checkpoint.folder).resumed is None
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    assert (found(file).weights, found(file).step) == (file, 0)
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / ".metadata").write_bytes(b"")
    assert (found(copied).weights, found(copied).step) == (copied, 0)
    with pytest.raises(UserError, match=r"runner.ckpt_path=.*no such folder"):
        found(tmp_path / "nowhere")


def test_two_sources_of_weights_are_a_contradiction(base):
    with pytest.raises(UserError, match="both say where weights come from"):
        config(base, runner__ckpt_path="a", runner__resume_dir="b")
