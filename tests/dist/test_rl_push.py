"""What the actor's ranks send to engines: the model's own numbers by the folder's names, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlinf_vlm.config.schema import Config
from rlinf_vlm.types import PushSettings, WeightBucket
from tests.dist.test_lora import fill_adapters
from tests.rl_run import begin, run_rl, sampled, to_bytes, train_on
from tests.small_run import whole_weights, write_small_run

SHARD = "actor__fsdp_config__sharding_strategy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("run"), train_rows=12, test_rows=4)


def pushed(actor: Any, *, everything: bool) -> tuple[tuple[WeightBucket, ...], dict[str, torch.Tensor], list[str]]:
    """One push as an engine would read it, on rank 0: the plan, the tensors, the files."""
    plan = actor.push_plan(everything)
    found: dict[str, torch.Tensor] = {}
    paths = []
    for index, bucket in enumerate(plan):
        path = actor.send_bucket(index)
        assert (path is None) == (actor.context.rank > 0)
        if path is None:
            continue
        memory = torch.from_file(path, shared=False, size=bucket.nbytes, dtype=torch.uint8)
        for spec, start in zip(bucket.weights, bucket.offsets, strict=True):
            dtype: torch.dtype = getattr(torch, spec.dtype)
            size = torch.Size(spec.shape).numel() * dtype.itemsize
            found[spec.name] = memory[start : start + size].view(dtype).view(spec.shape).clone()
        paths.append(path)
    return plan, found, paths


LOOK = "import os, sys; path = sys.argv[1]; print('rlinf_vlm' in os.readlink(path) and len(open(path, 'rb').read(1)))"


def seen_from_outside(path: str) -> bool:
    """Whether a process of its own can read the file; the same number may be another file's by then."""
    done = subprocess.run([sys.executable, "-c", LOOK, path], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() == "1"


def push_twice(actor: Any, config: Config) -> bytes:
    """Everything after a step of training, then what training changes after an evaluation left weights gathered."""
    begin(actor, config)
    train_on(actor, config, sampled(actor, Path(config.actor.model.model_path).parent, rows=2))
    before = set(Path("/dev/shm").iterdir())
    actor.open_push(PushSettings(transport="shm"))
    plan, everything, paths = pushed(actor, everything=True)
    alive = [seen_from_outside(path) for path in paths[:1]]
    actor.end_push()
    ended = [seen_from_outside(path) for path in paths[:1]]
    actor.evaluate()
    _, again, paths = pushed(actor, everything=False)
    weights = whole_weights(actor)
    actor._sender.close()
    closed = [seen_from_outside(path) for path in paths[:1]]
    left = set(Path("/dev/shm").iterdir()) - before
    return to_bytes((plan, everything, again, weights, alive, ended + closed, left))


@pytest.mark.parametrize(("world", "changes"), [(1, {}), (2, {SHARD: "full_shard"}), (2, {SHARD: "no_shard"})])
def test_what_is_sent_is_the_model(folder, world, changes):
    frozen = {"actor__model__freeze": {"vision_tower": True, "merger": True}}
    plan, everything, again, weights, alive, gone, left = run_rl(
        folder, world, push_twice, rollout__sync_bucket_mib=1, **frozen, **changes
    )
    stored = load_file(folder / "model" / "model.safetensors")
    assert everything.keys() == stored.keys()
    trained = {name for name in stored if "visual" not in name}
    assert again.keys() == trained and 0 < len(trained) < len(stored)
    in_memory = dict(zip(sorted(stored, key=new_name), sorted(weights), strict=True))
    for name, tensor in everything.items():
        assert torch.equal(tensor, weights[in_memory[name]]), name
        assert torch.equal(tensor, stored[name]) == (name not in trained), "the step has changed what is trained"
    for name, tensor in again.items():
        assert torch.equal(tensor, everything[name])
    assert len(plan) > 1 and max(bucket.nbytes for bucket in plan) <= 1 << 20
    assert all(offset % 256 == 0 for bucket in plan for offset in bucket.offsets)
    assert alive == [True] and not any(gone) and not left


def new_name(name: str) -> str:
    """The folder's name in the way of transformers 5."""
    if name.startswith("visual."):
        return f"model.{name}"
    return (
        name
        if name.startswith(("lm_head.", "model.visual.", "model.language_model."))
        else name.replace("model.", "model.language_model.", 1)
    )


def push_in_bf16(actor: Any, config: Config) -> bytes:
    actor.load()
    actor.open_push(PushSettings(transport="shm"))
    return to_bytes(pushed(actor, everything=True)[1])


def test_the_engine_s_dtype_is_sent(folder):
    found = run_rl(folder, 2, push_in_bf16, rollout__dtype="bf16")
    stored = load_file(folder / "model" / "model.safetensors")
    assert found.keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name].bfloat16()) for name, tensor in found.items())


def push_adapters(actor: Any, config: Config) -> bytes:
    actor.load()
    fill_adapters(actor)
    actor.open_push(PushSettings(transport="shm"))
    adapters = whole_weights(actor)
    everything = pushed(actor, everything=True)[1]
    return to_bytes((everything, pushed(actor, everything=False)[1], adapters))


def test_adapters_are_merged_and_their_whole_layers_sent(folder):
    lora = {"is_lora": True, "lora_rank": 4, "lora_alpha": 8, "lora_target": ["q_proj", "up_proj"]}
    changes = {f"actor__model__{name}": value for name, value in lora.items()}
    everything, again, adapters = run_rl(folder, 2, push_adapters, **changes)
    stored = load_file(folder / "model" / "model.safetensors")
    assert everything.keys() == stored.keys()
    assert {name for name in stored if ".layers." in name} == again.keys()
    merged = 0
    for name, tensor in everything.items():
        path = new_name(name).removesuffix(".weight")
        a = adapters.get(f"{path}.lora_A.default.weight")
        expected = stored[name]
        if a is not None:
            expected = expected + 2.0 * (adapters[f"{path}.lora_B.default.weight"] @ a)
            assert not torch.equal(tensor, stored[name])
            merged += 1
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    assert merged == 4
