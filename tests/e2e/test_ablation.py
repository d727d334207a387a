"""The evaluation with blank images through the launcher, on two ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from rlinf_vlm.config.load import load_config
from tests.e2e.test_sft import evaluations, guide, run
from tests.small_run import choice_rows, read_jsonl, run_ranks, train, tree, whole_weights


def learn(actor: Any, config: Any) -> None:
    """Trains, and writes the weights where the run's log would be."""
    train(actor, config)
    save_file(
        whole_weights(actor), Path(config.runner.logger.log_path) / "model.safetensors", metadata={"format": "pt"}
    )


@pytest.fixture(scope="module")
def model_that_looks(small_run, tmp_path_factory) -> Path:
    """A model folder whose weights answer by the picture."""
    folder = tmp_path_factory.mktemp("looks") / "model"
    shutil.copytree(small_run / "model", folder)
    changes = {"runner__max_steps": 20, "actor__optim__lr": 3e-3, "actor__global_batch_size": 32}
    run_ranks(load_config(tree(small_run, **changes, runner__logger__log_path=str(folder))), 1, learn)
    return folder


def test_blank_images_tell_that_the_model_looks(model_that_looks, small_run, tmp_path):
    status, output = run(
        guide(small_run, tmp_path),
        tmp_path / "log",
        f"actor.model.model_path={model_that_looks}",
        "data.train_data_paths=null",
        "data.num_workers=0",
        "cluster.cpu_workers_per_node=2",
        "runner.eval_image_ablation=true",
        "runner.logger.logger_backends=[]",
    )
    assert status == 0, output
    (metrics,) = evaluations(tmp_path / "log")
    records = read_jsonl(tmp_path / "log" / "eval" / "step_0.jsonl")
    assert [record["row"] for record in records] == list(range(101))
    for record, row in zip(records, choice_rows(101, seed=1), strict=True):
        assert record["correct_blank_image"] == (record["prediction_blank_image"] == record["answer"])
        assert record["choice_prediction_blank_image"] in record["choices"]
        assert record["choice_correct_blank_image"] == (record["choice_prediction_blank_image"] == record["answer"])
        if row["image"] is None:
            assert record["choice_prediction_blank_image"] == record["choice_prediction"]
    for name in ("correct", "choice_correct"):
        key = "eval/" + name.replace("correct", "accuracy")
        assert metrics[key] == sum(record[name] for record in records) / 101
        assert metrics[f"{key}_blank_image"] == sum(record[f"{name}_blank_image"] for record in records) / 101
    chance = sum(1 / len(record["choices"]) for record in records) / 101
    assert metrics["eval/choice_accuracy"] > 0.8
    assert abs(metrics["eval/choice_accuracy_blank_image"] - chance) < 0.12
    assert f"eval/choice_accuracy_blank_image {metrics['eval/choice_accuracy_blank_image']:.4f}" in output
