from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from rlinf_vlm.config.load import field_paths, load_config
from rlinf_vlm.config.schema import Config
from rlinf_vlm.types import UserError

TREE: dict[str, Any] = {
    "cluster": {"component_placement": {"actor": "all"}},
    "runner": {"task_type": "sft", "max_epochs": 1},
    "data": {"train_data_paths": "train.parquet", "eval_data_paths": "test.parquet"},
    "actor": {"model": {"model_type": "qwen2.5_vl", "model_path": "model"}, "optim": {"lr": 1e-5}},
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    change(tree)
    return tree


def message(change: Callable[[dict[str, Any]], object]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(changed(change))
    return str(caught.value)


def test_the_smallest_config_loads_and_is_frozen():
    config = load_config(TREE)
    assert config.actor.compute_dtype == "bf16"
    with pytest.raises(ValueError, match="frozen"):
        config.runner.max_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t["actor"].update(micro_batch_sze=3),
            "actor.micro_batch_sze=3: unknown key; did you mean actor.micro_batch_size?",
        ),
        (lambda t: t.update(actr={}), "actr={}: unknown key; did you mean actor?"),
        (lambda t: t["data"].update(micro_batch_size=1), "did you mean actor.micro_batch_size?"),
        (lambda t: t["actor"]["optim"].update(zzz=1), "actor.optim.zzz=1: unknown key; remove it (keys here: lr,"),
        (
            lambda t: t["actor"].update(micro_batch_size="four"),
            "actor.micro_batch_size='four': input should be a valid integer",
        ),
        (lambda t: t["actor"].update(micro_batch_size=0), "greater than or equal to 1"),
        (
            lambda t: t["actor"]["model"].update(precision="fp8"),
            "actor.model.precision='fp8': input should be 'fp32' or 'bf16'",
        ),
        (lambda t: t["actor"]["model"].update(lora_rank=0), "actor.model.lora_rank=0: input should be greater than"),
        (lambda t: t["actor"]["model"].update(lora_dropout=1), "actor.model.lora_dropout=1: input should be less than"),
        (
            lambda t: t["actor"]["model"].update(lora_target=["q_proj", "eyes.qkv"]),
            "'eyes.qkv' is no target; give a part (language_model, vision_tower, merger)",
        ),
        (lambda t: t["actor"]["model"].update(lora_target=[]), "at least 1 item"),
        (lambda t: t["runner"].update(max_steps=0), "runner.max_steps=0: is 0; give at least 1, or -1"),
        (lambda t: t["runner"].pop("task_type"), "runner.task_type: required but not given"),
        (lambda t: t["data"].update(val_data_paths="x"), "val_data_paths='x' and eval_data_paths='test.parquet'"),
        (lambda t: t["data"].update(min_pixels=9, max_pixels=4), "data.min_pixels=9 is larger than max_pixels=4"),
        (lambda t: t["actor"]["optim"].update(min_lr=1), "actor.optim.min_lr=1.0 is larger than lr=1e-05"),
        (lambda t: t["data"].update(train_data_paths=None, eval_data_paths=None), "leave nothing to do"),
        (
            lambda t: t["data"].update(test_data_paths="t.parquet", eval_data_paths=None),
            "data.test_data_paths='t.parquet' is evaluated beside eval_data_paths, which is null",
        ),
        (
            lambda t: t["actor"]["model"].update(
                freeze=dict.fromkeys(("vision_tower", "merger", "language_model"), True)
            ),
            "leave nothing to train",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(change, expected: str):
    text = message(change)
    assert expected in text
    assert len(text.splitlines()) == 1


def test_every_mistake_is_told_at_once():
    text = message(lambda t: (t["actor"].update(x1=1), t["data"].update(num_workers=-1)))
    assert len(text.splitlines()) == 2


def test_aliases():
    tree = changed(lambda t: t["data"].update(val_data_paths=t["data"].pop("eval_data_paths"), use_chat_template=False))
    config = load_config(tree)
    assert config.data.eval_data_paths == "test.parquet" and config.data.apply_chat_template is False


def blocks(block: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in block.model_fields.values()]
    return [
        block,
        *(b for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel) for b in blocks(kind)),
    ]


@pytest.mark.parametrize("block", blocks(Config), ids=lambda block: block.__name__)
def test_every_field_is_explained(block: type[BaseModel]):
    assert block.__doc__
    assert [name for name, field in block.model_fields.items() if not field.description] == []
    assert block.model_config["extra"] == "forbid" and block.model_config["frozen"]


def test_field_paths_reach_the_leaves():
    assert {"actor.fsdp_config.mixed_precision.param_dtype", "data.eval_data_paths"} <= set(field_paths())
