"""A rollout worker with a real engine on a CPU, rows that it is asked, and weights pushed to it as the actor does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from rlinf_vlm.config.schema import Config
from rlinf_vlm.distributed.weight_push import SharedMemory, make_buckets
from rlinf_vlm.rollout.records import Rollout
from rlinf_vlm.types import ProcessedImage, RankContext, Sample, WeightBucket, WeightSpec
from rlinf_vlm.workers.rollout import RolloutWorker
from tests.small_run import COLOURS, picture, tree, write_parquet

SIZES = ((56, 56), (40, 120), (112, 84), (28, 28))
BROKEN, TOO_LONG = 8, 9


def problem_rows() -> list[dict[str, Any]]:
    """Eight rows that can be asked, pictures of four sizes, two of them in row 6, none in rows 2 and 5; then a picture
    that does not decode and a problem that is too long."""
    colours = list(COLOURS.values())
    rows = []
    for index in range(8):
        images = [] if index in (2, 5) else [picture(colours[index % 4], SIZES[index % 4])]
        images += [picture(colours[0], (84, 56))] if index == 6 else []
        rows.append({"problem": f"What colour? {'Look. ' * index}", "answer": "red", "images": images})
    rows.append({"problem": "Broken?", "answer": "red", "images": [{"bytes": b"no picture", "path": None}]})
    rows.append({"problem": "Look. " * 90, "answer": "red", "images": []})
    return rows


def engine_config(folder: Path, **changes: Any) -> Config:
    """Reinforcement learning over the rows and the model in ``folder``, in fp32 on a CPU."""
    settings = {
        "data__dataset_name": "geo3k",
        "data__prompt_key": "problem",
        "data__answer_key": "answer",
        "data__image_keys": ["images"],
        "data__choice_key": None,
        "data__max_prompt_length": 120,
        "data__max_pixels": 12544,
        "data__on_bad_row": "drop",
        "rollout__kv_cache_gib": 0.25,
        "rollout__max_num_seqs": 32,
        "algorithm__sampling_params__max_new_tokens": 24,
        "algorithm__eval_sampling_params__max_new_tokens": 24,
        **changes,
    }
    return Config.model_validate(tree(folder, **settings))


def write_problems(folder: Path) -> None:
    """The rows, for training and, in another order, for evaluation."""
    write_parquet(problem_rows(), folder / "train" / "part.parquet")
    write_parquet(problem_rows()[::-1], folder / "test" / "part.parquet")


def make_worker(config: Config) -> RolloutWorker:
    """A worker that is not loaded yet."""
    context = RankContext(
        rank=0,
        world_size=1,
        local_rank=0,
        local_world_size=1,
        master_addr="127.0.0.1",
        master_port=0,
        device="cpu",
        num_threads=1,
    )
    return RolloutWorker(context, config)


def read_weights(model: Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder by the names in its files."""
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def packed(weights: Mapping[str, torch.Tensor], bucket_bytes: int = 1 << 16) -> Iterator[tuple[WeightBucket, str]]:
    """Buckets as the actor makes them and where they are, each written over the one before."""
    specs = {
        name: WeightSpec(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
        for name, tensor in weights.items()
    }
    buckets = make_buckets([[spec] for spec in specs.values()], bucket_bytes)
    memory = SharedMemory()
    for bucket in buckets:
        memory.begin(bucket.content, max(other.content.nbytes for other in buckets))
        for place, spec in enumerate(bucket.content.weights):
            memory.put(place, weights[spec.name])
        yield bucket.content, memory.handle()
    memory.free()


def push(worker: RolloutWorker, weights: Mapping[str, torch.Tensor], version: int) -> None:
    """A whole push."""
    worker.begin_push()
    for bucket, path in packed(weights):
        worker.receive_bucket(bucket, path)
    worker.finish_push(version)


def moved(weights: Mapping[str, torch.Tensor], seed: int, *, only: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Other values for the weights whose names begin with one of ``only`` (none: for all)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
        if not only or name.startswith(tuple(only))
    }


def write_weights(model: Path, weights: Mapping[str, torch.Tensor], target: Path) -> Path:
    """A copy of the folder ``model`` with other weights."""
    shutil.copytree(model, target)
    save_file(dict(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


def reference_logprobs(
    model: Path,
    prompts: Mapping[int, Sample],
    rollouts: Sequence[Rollout],
    temperature: float,
    banned: Sequence[int],
    process: Callable[[bytes], ProcessedImage] | None = None,
) -> list[torch.Tensor]:
    """Of each rollout [L] float32: what transformers says of the tokens that the policy generated in all its turns,
    with its own M-RoPE positions and no packing.

    prompts: row -> its rendering; banned ids have probability 0, the other logits are divided by ``temperature``;
    process: of the pictures that environments showed.
    """
    hf = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for rollout in rollouts:
        prompt = prompts[rollout.row]
        pieces, own = (
            [prompt.input_ids[: rollout.prompt_length]],
            [torch.zeros(rollout.prompt_length, dtype=torch.bool)],
        )
        images = list(prompt.images)
        for turn in rollout.turns:
            pieces += [torch.tensor(ids, dtype=torch.int64) for ids in (turn.context_ids, turn.token_ids)]
            own += [torch.full((len(turn.context_ids),), False), torch.full((len(turn.token_ids),), True)]
            images += [process(content) for content in turn.images]
        ids, mask = torch.cat(pieces)[None], torch.cat(own)
        inputs = {"input_ids": ids, "mm_token_type_ids": (ids == hf.config.image_token_id).long()}
        for name in ("pixel_values", "image_grid_thw"):
            if images:
                inputs[name] = torch.cat([image.tensors[name] for image in images])
        with torch.no_grad():
            logits = hf(**inputs).logits[0, :-1][mask[1:]]
        logits[:, list(banned)] = -torch.inf
        logprobs = (logits / temperature).log_softmax(-1)
        found.append(logprobs.gather(1, ids[0][mask][:, None])[:, 0])
    return found


def gap(rollouts: Sequence[Rollout], reference: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Mean and largest difference between the engine's log-probabilities and ``reference``."""
    engine = torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
    difference = (engine - torch.cat(list(reference))).abs()
    return difference.mean().item(), difference.max().item()
