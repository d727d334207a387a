"""A mistake ends the run before any process starts: status 2, one line a mistake, key, both values, remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.train_vlm import main
from tests.small_run import choice_rows, write_parquet


def told(capsys, small_run: Path, *overrides: str, name: str = "robo2vlm_sft") -> str:
    """What is printed on standard error by a run that has to be refused."""
    paths = [
        f"actor.model.model_path={small_run}/model",
        f"data.train_data_paths={small_run}/train",
        f"data.eval_data_paths={small_run}/test",
        f"runner.logger.log_path={small_run}/log",
    ]
    status = main(["--config-name", name, *paths, *overrides])
    captured = capsys.readouterr()
    assert status == 2, captured
    assert "Traceback" not in captured.err + captured.out
    assert not (small_run / "log").exists(), "a refused run writes nothing"
    lines = captured.err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines)
    return captured.err


MISTAKES = {
    "unknown key": (["actor.micro_batch_sze=3"], ["actor.micro_batch_sze=3", "did you mean actor.micro_batch_size"]),
    "wrong type": (["actor.micro_batch_size=four"], ["actor.micro_batch_size='four'", "integer"]),
    "wrong literal": (["actor.model.precision=fp8"], ["actor.model.precision='fp8'", "'fp32' or 'bf16'"]),
    "out of range": (["actor.optim.lr=-1"], ["actor.optim.lr=-1", "greater than or equal to 0"]),
    "batch arithmetic": (
        ["actor.packing=false", "actor.global_batch_size=10", "actor.micro_batch_size=4"],
        ["actor.global_batch_size=10", "actor.micro_batch_size=4", "set it to 8 or 12"],
    ),
    "placement beyond the machine": (
        ["cluster.component_placement.actor=0-7"],
        ["cluster.component_placement.actor", "0-7", "1 worker slot", "cpu_workers_per_node"],
    ),
    "placement in base 60": (["cluster.component_placement.actor=63"], ["63", "1:3", "quote"]),
    "placement grammar": (["cluster.component_placement.actor=0-x"], ["cluster.component_placement.actor", "0-x"]),
    "placement of something else": (["cluster.component_placement={actor: all, rollout: all}"], ["rollout", "actor"]),
    "model folder": (["actor.model.model_path=/nowhere/model"], ["actor.model.model_path='/nowhere/model'", "no such"]),
    "model type": (["actor.model.model_type=qwen3_vl"], ["qwen3_vl", "qwen2_5_vl", "actor.model.model_type"]),
    "unknown model type": (["actor.model.model_type=qwen9"], ["qwen9", "qwen2.5_vl"]),
    "data path": (["data.train_data_paths=/nowhere/train"], ["data.train_data_paths", "/nowhere/train"]),
    "glob without files": (["data.eval_data_paths=/nowhere/*.parquet"], ["data.eval_data_paths", "/nowhere/*.parquet"]),
    "column": (["data.prompt_key=questoin"], ["data.prompt_key", "questoin", "question"]),
    "image column": (["data.image_keys=[picture]"], ["data.image_keys", "picture", "image"]),
    "dataset kind": (["data.dataset_name=robo2vlm_sft"], ["data.dataset_name", "robo2vlm_sft", "robo2vlmsft"]),
    "horizon": (
        ["runner.max_steps=10", "actor.optim.lr_warmup_steps=50"],
        ["actor.optim.lr_warmup_steps=50", "10 steps", "lr_warmup_steps_ratio"],
    ),
    "no end": (["runner.max_steps=-1"], ["runner.max_epochs=-1", "runner.max_steps=-1"]),
    "interval zero": (["runner.save_interval=0"], ["runner.save_interval=0", "-1"]),
    "evaluation without rows": (
        ["data.eval_data_paths=null"],
        ["runner.val_check_interval=1000", "data.eval_data_paths"],
    ),
    "blank images without evaluation": (
        ["runner.eval_image_ablation=true", "runner.val_check_interval=-1"],
        ["runner.eval_image_ablation=true", "runner.val_check_interval=-1", "set it to"],
    ),
    "blank images without images": (
        ["runner.eval_image_ablation=true", "data.image_keys=[]"],
        ["runner.eval_image_ablation=true", "data.image_keys=[]", "name the image columns"],
    ),
    "nothing to do": (["data.eval_data_paths=null", "data.train_data_paths=null"], ["train_data_paths=null"]),
    "nodes": (["cluster.num_nodes=2"], ["cluster.num_nodes=2", "RAY_ADDRESS"]),
    "node group": (
        ["cluster.component_placement={actor: {node_group: gpus, placement: all}}"],
        ["gpus", "cluster"],
    ),
    "backend": (["runner.logger.logger_backends=[wandb]"], ["wandb", "pip install"]),
    "process count": (["cluster.component_placement.actor='0:3'"], ["0:3", "without a gap", "0-3"]),
    "attention kernel": (["actor.model.attn_implementation=varlen"], ["attn_implementation='varlen'", "CPU", "sdpa"]),
    "seed": (["actor.seed=4294967296"], ["actor.seed=4294967296", "4294967296"]),
    "infinite": (["actor.optim.lr=inf"], ["actor.optim.lr=inf", "finite"]),
    "column twice": (["data.image_keys=[image,image]"], ["data.image_keys", "twice"]),
    "group twice": (
        ["cluster.node_groups=[{label: a, node_ranks: 0}, {label: a, node_ranks: 0}]"],
        ["cluster.node_groups", "rename"],
    ),
    "block of text": (["data=foo"], ["data='foo'"]),
    "override without key": (["=3"], ["=3", "key=value"]),
    "not a kind": (["data.dataset_name=json:loads"], ["data.dataset_name='json:loads'", "robo2vlmsft"]),
    "unknown backend": (["runner.logger.logger_backends=[tensorbord]"], ["logger_backends", "tensorbord"]),
    "hybrid shard": (
        [
            "cluster.cpu_workers_per_node=2",
            "actor.fsdp_config.sharding_strategy=hybrid_shard",
            "actor.fsdp_config.hybrid_shard_size=3",
        ],
        ["hybrid_shard_size=3", "2 ranks"],
    ),
    "pixels": (["data.min_pixels=500", "data.max_pixels=400"], ["min_pixels=500", "max_pixels=400"]),
    "log path": (["runner.logger.log_path=/proc/nowhere"], ["runner.logger.log_path", "/proc"]),
    "override syntax": (["actor.optim.lr=[1"], ["actor.optim.lr=[1"]),
    "sweep": (["data.prompt_key=a,b"], ["data.prompt_key=a,b", "quote"]),
    "interpolation": (["data.prompt_key=${nothing.here}"], ["nothing.here"]),
}


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(overrides, expected, small_run, capsys):
    text = told(capsys, small_run, *overrides)
    for part in expected:
        assert part in text


def test_packing_needs_a_family_that_packs(small_run, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(small_run / "model", folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"qwen2_5_vl"', '"llava"'))
    model = [f"actor.model.model_path={folder}", "actor.model.model_type=auto"]
    text = told(capsys, small_run, *model, "actor.packing=true")
    assert "actor.packing=true" in text and "set actor.packing to auto or false" in text


def test_missing_config(capsys):
    assert main(["--config-name", "custm_sft_vlm"]) == 2
    assert "custom_sft_vlm" in capsys.readouterr().err


def test_yaml_syntax(tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("actor:\n  micro_batch_size: [1\n")
    assert main(["--config-name", str(tmp_path / "broken.yaml")]) == 2
    assert "broken" in capsys.readouterr().err


def test_base_60_in_yaml(tmp_path, small_run, capsys):
    (tmp_path / "c.yaml").write_text("defaults: [robo2vlm_sft, _self_]\ncluster: {component_placement: {actor: 0:1}}\n")
    shutil.copytree(Path(__file__).parents[2] / "examples" / "config", tmp_path, dirs_exist_ok=True)
    text = told(capsys, small_run, name=str(tmp_path / "c.yaml")) if _reads_base_60() else "quote 0:1"
    assert "0:1" in text


def _reads_base_60() -> bool:
    """Whether the installed YAML reader takes an unquoted 0:1 for a number."""
    from omegaconf import OmegaConf

    return OmegaConf.create("a: 1:3").a == 63


def test_cut_parquet(small_run, tmp_path, capsys):
    whole = write_parquet(choice_rows(40), tmp_path / "data" / "a.parquet").read_bytes()
    (tmp_path / "data" / "b.parquet").write_bytes(whole[: len(whole) // 2])
    text = told(capsys, small_run, f"data.train_data_paths={tmp_path}/data")
    assert "b.parquet" in text and "data.train_data_paths" in text


def test_empty_folder(small_run, tmp_path, capsys):
    text = told(capsys, small_run, f"data.train_data_paths={tmp_path}")
    assert str(tmp_path) in text and "parquet" in text


def test_files_of_two_splits_in_one_folder(small_run, tmp_path, capsys):
    for name in ("train-0.parquet", "test-0.parquet"):
        write_parquet(choice_rows(4), tmp_path / name)
    text = told(capsys, small_run, f"data.train_data_paths={tmp_path}")
    assert "train-" in text and "test" in text


def test_missing_column(small_run, tmp_path, capsys):
    table = pq.read_table(small_run / "train" / "part.parquet").drop_columns(["correct_answer"])
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    text = told(capsys, small_run, f"data.train_data_paths={tmp_path}/data")
    assert "data.answer_key" in text and "correct_answer" in text


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tokenizer.json", "no tokenizer"),
        ("processor_config.json", "no processor"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_model_folder_that_is_not_whole(small_run, tmp_path, capsys, name, what):
    folder = tmp_path / "model"
    shutil.copytree(small_run / "model", folder)
    (folder / name).unlink()
    text = told(capsys, small_run, f"actor.model.model_path={folder}")
    assert "actor.model.model_path" in text and what in text


def test_a_value_that_fits_no_form_is_one_line(small_run, capsys):
    text = told(capsys, small_run, "cluster.component_placement={actor: {placement: all, node_grp: x}}")
    assert "node_grp" in text and len(text.splitlines()) == 1
    text = told(capsys, small_run, "cluster.component_placement={actor: 0.5}")
    assert "cluster.component_placement.actor=0.5" in text and len(text.splitlines()) == 1


def test_cut_weights(small_run, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(small_run / "model", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    text = told(capsys, small_run, f"actor.model.model_path={folder}")
    assert "model.safetensors" in text and "cut" in text
