"""Each rank reads its own part of a model folder: under every mesh what from_pretrained loads; or one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from rlinf_vlm.config.load import load_config
from rlinf_vlm.distributed.fsdp import ShardedModel, Sharding
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.filling import fill, open_stored
from rlinf_vlm.models.loading import blocks_in_order, build_model
from rlinf_vlm.models.lora import LoraSettings, adapted_modules, first_values, is_adapter
from rlinf_vlm.types import UserError
from tests.convert_inputs import moe_text, old_name, one_by_one, write_base, write_weights
from tests.small_run import run_ranks, tree, whole_weights, write_small_run
from tests.tiny_models import GENERIC, QWEN_FAMILIES

SETTINGS = LoraSettings(rank=3, alpha=6, dropout=0.0, targets=("language_model",), frozen=frozenset(), seed=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Name of a case, which begins with the family -> a model folder: hub names, bfloat16, three files."""
    made = tmp_path_factory.mktemp("folders")
    cases = {family: {} for family in (*QWEN_FAMILIES, GENERIC)}
    cases |= {f"{family} tied": {"tied": True} for family in ("qwen2_vl", "qwen2.5_vl", GENERIC)}
    cases["qwen2.5_vl fp32, new names, one file"] = {"dtype": torch.float32, "old": False, "shards": 1}
    cases["qwen2.5_vl tied, head stored"] = {"tied": True, "lm_head": True}
    for number, (name, more) in enumerate(cases.items()):
        write_base(made / str(number), name.split()[0], **{"dtype": torch.bfloat16, "shards": 3, **more})
    weights = write_base(made / "experts", GENERIC, text_config=moe_text, shards=2)
    on_disk = {old_name(GENERIC, name): tensor for name, tensor in one_by_one(weights).items()}
    write_weights(made / "experts", on_disk, shards=2)
    return {**{name: made / str(number) for number, name in enumerate(cases)}, f"{GENERIC} experts": made / "experts"}


def load(folder: Path, family: str, dtype: torch.dtype, shard_size: int, lora: LoraSettings | None = None) -> Any:
    """The sharded policy with the folder's weights; its memory was full of NaN before."""
    spec = resolve_family("auto" if family == GENERIC else family)
    module = build_model(folder, spec, dtype=dtype, attention="sdpa", on_meta=True, lora=lora)
    stored = open_stored(folder, module.hf)
    assert stored is not None
    sharding = Sharding(
        shard_size=shard_size, reshard=True, accumulate=True, compute_dtype=dtype, reduce_dtype=torch.float32
    )
    sharded = ShardedModel(module, blocks_in_order(module), sharding, "cpu")
    sharded.materialise()
    parts = {module.hf_state_name(name): part for name, part in sharded.parts().items()}
    for tensor, _ in parts.values():
        tensor.fill_(float("nan"))
    fresh = first_values(adapted_modules(module.hf, spec), rank=lora.rank, seed=lora.seed) if lora else ()
    fill(parts, stored, fresh)
    return module


def compare(_actor: Any, _config: Any, cases: dict[str, Path], shard_size: int) -> dict[str, int]:
    """A task: loads every case in both types and compares what the ranks hold together, bit for bit.

    Counts what this rank holds: tensors, uneven ones (less than an equal share), and empty ones.
    """
    held = {"tensors": 0, "smaller": 0, "empty": 0}
    for name, folder in cases.items():
        for dtype in (torch.float32, torch.bfloat16):
            module = load(folder, name.split()[0], dtype, shard_size)
            wanted = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            found = dict(module.hf.named_parameters(remove_duplicate=False))
            assert list(found) == [key for key, _ in wanted.named_parameters(remove_duplicate=False)], name
            for key, parameter in wanted.named_parameters(remove_duplicate=False):
                assert isinstance(found[key], DTensor) and found[key].dtype == dtype
                assert torch.equal(found[key].full_tensor(), parameter), f"{name}: {key}"
                rows = len(found[key].to_local())
                held["tensors"] += 1
                held["smaller"] += rows * shard_size < len(parameter)
                held["empty"] += rows == 0
            buffers = dict(wanted.named_buffers())
            for key, buffer in module.hf.named_buffers():
                assert torch.equal(buffer, buffers[key]) and buffer.dtype in (torch.float32, torch.int64), key
    return held


@pytest.mark.parametrize(("world_size", "shard_size"), [(1, 1), (2, 2), (2, 1), (3, 3), (4, 2)])
def test_all_ranks_together_hold_what_from_pretrained_loads(folders, small_run, world_size, shard_size):
    cases = folders if world_size < 4 else {name: folders[name] for name in ("qwen2.5_vl tied", "qwen3_vl_moe")}
    config = load_config(tree(small_run, actor__global_batch_size=4 * world_size))
    held = run_ranks(config, world_size, partial(compare, cases=cases, shard_size=shard_size))
    assert len({rank["tensors"] for rank in held}) == 1 and held[0]["tensors"] > 100
    assert all(rank["empty"] == 0 for rank in held[:2])
    if world_size == 3:
        assert held[2]["smaller"] > 0 and held[2]["empty"] > 0


def adapters(actor: Any, _config: Any, folder: Path) -> dict[str, Any]:
    """A task: all weights, whole (as arrays, which outlive this process), of a model with adapters."""
    module = load(folder, "qwen2.5_vl", torch.float32, actor.context.world_size, SETTINGS)
    return {module.hf_state_name(n): p.full_tensor().detach().numpy() for n, p in module.named_parameters()}


def test_adapters_begin_alike_on_every_number_of_ranks_beside_the_folders_weights(folders, small_run):
    folder, config = folders["qwen2.5_vl tied"], load_config(tree(small_run))
    alone, *_ = run_ranks(config, 1, partial(adapters, folder=folder))
    first, second = run_ranks(config, 2, partial(adapters, folder=folder))
    spec = resolve_family("qwen2.5_vl")
    plain = build_model(folder, spec, dtype=torch.float32, attention="sdpa", lora=SETTINGS)
    wanted = {plain.hf_state_name(name): parameter for name, parameter in plain.named_parameters()}
    assert sum(is_adapter(name) for name in wanted) == 28
    for found in (alone, first, second):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], parameter.detach()) for name, parameter in wanted.items())
    drawn = [name for name in wanted if ".lora_A." in name]
    assert all(0 < float(wanted[name].abs().max()) < 1 for name in drawn)


def refused(actor: Any, _config: Any) -> str:
    """A task: the line with which the actor refuses its model folder."""
    try:
        actor.load()
    except UserError as error:
        return str(error)
    return "loaded"


BREAKS = {
    "missing": lambda w: w.pop("model.norm.weight"),
    "unexpected": lambda w: w.update({"visual.more": torch.ones(2)}),
    "mismatched": lambda w: w.update({"model.norm.weight": torch.ones(7)}),
}
TOLD = {
    "missing": "lacks 1 tensors that its config.json needs (model.language_model.norm.weight)",
    "unexpected": "has no place for the tensor visual.more",
    "mismatched": "model.norm.weight has the shape [7], its config.json says [64]",
}


@pytest.mark.parametrize("is_lora", [False, True])
@pytest.mark.parametrize("what", BREAKS)
def test_every_rank_refuses_a_folder_that_does_not_fit(what, is_lora, tmp_path):
    folder = write_small_run(tmp_path, train_rows=4, test_rows=4) / "model"
    weights = load_file(folder / "model.safetensors")
    BREAKS[what](weights)
    write_weights(folder, weights)
    made = {"actor__model__is_lora": is_lora, "actor__model__lora_target": ["language_model"]}
    lines = run_ranks(load_config(tree(tmp_path, **made)), 2, refused)
    assert len(set(lines)) == 1 and "\n" not in lines[0]
    assert lines[0].startswith(f"actor.model.model_path='{folder}': ") and TOLD[what] in lines[0], lines[0]


def loaded(actor: Any, _config: Any) -> dict[str, Any]:
    """A task: the weights of a loaded actor, as arrays."""
    actor.load()
    return {name: tensor.numpy() for name, tensor in whole_weights(actor).items()}


def test_torchs_own_files_are_read_by_the_first_rank(tmp_path):
    folder = write_small_run(tmp_path, train_rows=4, test_rows=4) / "model"
    weights = load_file(folder / "model.safetensors")
    wanted = dict(AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).named_parameters())
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for found in run_ranks(load_config(tree(tmp_path)), 2, loaded):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[name], parameter.detach()) for name, parameter in wanted.items())
