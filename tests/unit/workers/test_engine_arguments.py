"""What vLLM is told, of engines and of weights; no engine runs here."""

from __future__ import annotations

import pytest
import torch

from rlinf_vlm.config.schema import Config
from rlinf_vlm.data.processor import load_processor
from rlinf_vlm.types import UserError, WeightBucket, WeightSpec
from rlinf_vlm.workers.engine_settings import engine_arguments, pixel_options
from rlinf_vlm.workers.push_messages import bucket_message, view_handle
from rlinf_vlm.workers.rollout import answer_seed
from tests.engine_run import engine_config

BUCKET = WeightBucket(
    weights=(
        WeightSpec(name="a", dtype="bfloat16", shape=(3, 5)),
        WeightSpec(name="b", dtype="float32", shape=(2, 1, 4)),
        WeightSpec(name="c", dtype="float32", shape=()),
    ),
    offsets=(0, 256, 512),
    nbytes=516,
)


def config(tmp_path, **changes) -> Config:
    return engine_config(tmp_path, **changes)


def test_lengths_and_types_follow_from_the_config(tmp_path):
    made = engine_arguments(
        config(tmp_path, algorithm__eval_sampling_params__max_new_tokens=50), {"size": 1}, on_gpu=False
    )
    assert made["max_model_len"] == 170 and made["dtype"] == "float32" and made["enforce_eager"] is True
    assert made["kv_cache_memory_bytes"] == 2**28 and "gpu_memory_utilization" not in made
    assert made["mm_processor_kwargs"] == {"size": 1} and made["limit_mm_per_prompt"]["video"] == 0


def test_a_gpu_engine_records_graphs_and_may_sleep(tmp_path):
    made = engine_arguments(config(tmp_path, rollout__dtype="bf16"), None, on_gpu=True)
    assert made["dtype"] == "bfloat16" and made["enforce_eager"] is False and made["enable_sleep_mode"] is True
    assert made["gpu_memory_utilization"] == 0.5 and "kv_cache_memory_bytes" not in made
    assert "mm_processor_kwargs" not in made
    assert engine_arguments(config(tmp_path, rollout__sleep=False), None, on_gpu=True)["enable_sleep_mode"] is False


def test_an_engine_of_several_gpus_starts_its_own_processes(tmp_path):
    made = engine_arguments(config(tmp_path, rollout__tensor_parallel_size=2), None, on_gpu=True)
    assert (made["tensor_parallel_size"], made["distributed_executor_backend"]) == (2, "mp")
    assert "distributed_executor_backend" not in engine_arguments(config(tmp_path), None, on_gpu=True)


def test_engine_kwargs_come_last(tmp_path):
    changed = config(tmp_path, rollout__engine_kwargs={"max_num_seqs": 3, "seed": 4}, rollout__enforce_eager=False)
    made = engine_arguments(changed, None, on_gpu=False)
    assert (made["max_num_seqs"], made["seed"], made["enforce_eager"]) == (3, 4, False)


def test_prompts_without_a_bound_are_refused(tmp_path):
    with pytest.raises(UserError, match="data.max_prompt_length=null"):
        engine_arguments(config(tmp_path, data__max_prompt_length=None), None, on_gpu=False)


def test_pixels_are_the_trainers(tmp_path, small_run):
    def options(**changes):
        made = config(tmp_path, **changes)
        processor = load_processor(
            str(small_run / "model"), min_pixels=made.data.min_pixels, max_pixels=made.data.max_pixels
        )
        return pixel_options(made, processor), processor

    found, processor = options(data__max_pixels=20_000)
    assert found == {"size": {"shortest_edge": processor.image_processor.size["shortest_edge"], "longest_edge": 20_000}}
    assert options(data__max_pixels=None)[0] is None
    assert options(rollout__mm_processor_kwargs={"max_pixels": 9})[0] == {"max_pixels": 9}


def test_neighbouring_prompts_share_no_seeds():
    seeds = {answer_seed(seed) + member for seed in range(500) for member in range(16)}
    assert len(seeds) == 500 * 16
    assert answer_seed(3) == answer_seed(3) and max(seeds) < 2**63


def test_a_bucket_in_a_file_is_told_by_places():
    message = bucket_message("shm", BUCKET, "/some/file")
    assert message["path"] == "/some/file" and message["nbytes"] == 516 and message["offsets"] == [0, 256, 512]
    assert message["names"] == ["a", "b", "c"] and message["shapes"] == [[3, 5], [2, 1, 4], []]
    assert set(bucket_message("nccl", BUCKET, None)) == {"names", "dtype_names", "shapes"}


def test_a_handle_of_a_gpus_memory_becomes_one_a_weight():
    """The storage arguments stay; torch's own rebuilding of a tensor over them gives the weight."""
    storage = torch.arange(1024, dtype=torch.int32).to(torch.uint8).untyped_storage()
    shared = ("handle", 1024, 0, False, b"counter", 0, b"event", True)
    whole = (torch.Tensor, torch.Size([896]), (1,), 128, torch.UntypedStorage, torch.uint8, 0, *shared)
    message = bucket_message("ipc", BUCKET, {"gpu-1": whole, "gpu-2": whole})
    assert [set(handles) for handles in message["ipc_handles"]] == [{"gpu-1", "gpu-2"}] * 3
    for place, (spec, start) in enumerate(zip(BUCKET.weights, BUCKET.offsets, strict=True)):
        args = message["ipc_handles"][place]["gpu-2"]
        assert args == view_handle(whole, spec.dtype, spec.shape, start)
        assert args[4] is torch.UntypedStorage and args[6:] == whole[6:]
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=args[5], _internal=True)
        tensor = torch._utils._rebuild_tensor(typed, args[3], args[1], args[2])
        size = torch.Size(spec.shape).numel() * args[5].itemsize
        expected = torch.tensor([], dtype=torch.uint8).set_(storage, 128 + start, (size,))
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), expected) and tensor.shape == spec.shape
