"""A small model, small files and a config for tests that really train; and actors run in processes without Ray."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import random
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlinf_vlm.config.resolve import resolve_schedule, shard_size
from rlinf_vlm.config.schema import Config
from rlinf_vlm.models.families import resolve_family
from rlinf_vlm.models.folder import read_model_folder
from rlinf_vlm.runners.preflight import plan_batching, plan_passes, rank_memory
from rlinf_vlm.types import RankContext

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


def write_model(folder: Path, seed: int = 0, **shape: Any) -> Path:
    """The demo's model, smaller."""
    from toolkits.data.demo_model import DemoShape, write_model

    sizes = {
        "vision_depth": 2,
        "text_depth": 2,
        "vision_hidden": 64,
        "text_hidden": 64,
        "text_ffn": 96,
        "vision_ffn": 96,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_model(
        folder, [*COLOURS, "What colour is the picture?"] * 20, DemoShape(**{**sizes, "text_heads": 2, **shape}), seed
    )
    return folder


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (56, 56)) -> dict[str, Any]:
    """An image column's value."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def choice_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in the shape of Robo2VLM-1: choices as the text of a Python list, the answer's index, an image struct.

    Every seventh row has no image; texts and pictures differ in size.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        choices = rng.sample(sorted(COLOURS), k=rng.randint(2, 4))
        answer = rng.randrange(len(choices))
        size = (rng.choice([40, 56, 90]), rng.choice([56, 120]))
        rows.append(
            {
                "id": str(index),
                "question": "What colour is the picture?" + " Look." * rng.randint(0, 9),
                "choices": repr(choices),
                "correct_answer": answer,
                "image": None if index % 7 == 3 else picture(COLOURS[choices[answer]], size),
            }
        )
    return rows


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Writes rows as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=16)
    return path


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config over the files that ``folder`` holds; ``changes`` are dotted keys with __ for the dot."""
    config: dict[str, Any] = {
        "runner": {
            "task_type": "sft",
            "max_steps": 3,
            "report": False,
            "logger": {"log_path": str(folder / "log"), "logger_backends": []},
        },
        "data": {
            "dataset_name": "robo2vlmsft",
            "train_data_paths": str(folder / "train"),
            "eval_data_paths": str(folder / "test"),
            "choice_key": "choices",
            "answer_key": "correct_answer",
            "num_workers": 0,
        },
        "actor": {
            "micro_batch_size": 4,
            "global_batch_size": 16,
            "eval_batch_size": 8,
            "model": {"model_type": "qwen2.5_vl", "model_path": str(folder / "model")},
            "optim": {"lr": 1e-3, "lr_scheduler": "constant"},
            "fsdp_config": {"mixed_precision": {"param_dtype": "fp32"}},
        },
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return config


def rl_tree(folder: Path, experiment: str, **changes: Any) -> dict[str, Any]:
    """A config of reinforcement learning over the files that ``folder`` holds: four steps of 6 prompts x 4 answers,
    some of them without an image; an evaluation and a checkpoint every second."""
    given: dict[str, Any] = {
        "runner__task_type": "reasoning",
        "runner__max_steps": 4,
        "runner__val_check_interval": 2,
        "runner__save_interval": 2,
        "runner__logger": {"experiment_name": experiment, "logger_backends": []},
        "cluster__component_placement": {"actor,rollout": 0},
        "data__max_prompt_length": 200,
        "data__rollout_batch_size": 6,
        "algorithm": {
            "group_size": 4,
            "sampling_params": {"max_new_tokens": 12, "temperature": 0.9},
            "eval_sampling_params": {"max_new_tokens": 8, "n": 2},
        },
        "reward": {"name": "tests.rl_rewards:LetterShare", "num_workers": 1},
        "rollout": {"kv_cache_gib": 0.25},
    }
    made = tree(folder, **{**given, **changes})
    del made["actor"]["global_batch_size"]
    return made


def write_small_run(folder: Path, train_rows: int = 64, test_rows: int = 21) -> Path:
    """Model, training and test files."""
    write_model(folder / "model")
    write_parquet(choice_rows(train_rows), folder / "train" / "part.parquet")
    write_parquet(choice_rows(test_rows, seed=1), folder / "test" / "part.parquet")
    return folder


Task = Callable[[Any, Config], Any]
"""What a rank does with its actor: (ActorWorker, Config) -> something that pickles. Defined at a module's top level."""


def run_ranks(config: Config, world_size: int, task: Task) -> list[Any]:
    """``task``'s results by rank, each rank an actor (task_type reasoning: an RLActor) in a process of its own (gloo).

    Fails with the traceback.
    """
    port = quiet_port()
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    ranks = [
        spawn.Process(target=_rank, args=(rank, world_size, port, config, task, queue)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < world_size:
            rank, error, value = queue.get(timeout=480)
            assert error is None, f"rank {rank}:\n{error}"
            found[rank] = value
    finally:
        for process in ranks:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(world_size)]


def quiet_port() -> int:
    """A free port that the system gives to nobody who asks for any: it is bound only seconds later."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("100 ports of 127.0.0.1 are taken")


def _rank(rank: int, world_size: int, port: int, config: Config, task: Task, queue: Any) -> None:
    from rlinf_vlm.workers.actor import ActorWorker
    from rlinf_vlm.workers.rl_actor import RLActor

    made = ActorWorker if config.runner.task_type == "sft" else RLActor
    context = RankContext(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        local_world_size=world_size,
        master_addr="127.0.0.1",
        master_port=port,
        device="cpu",
        num_threads=1,
    )
    try:
        shard = shard_size(config.actor, world_size, world_size)
        family = resolve_family(config.actor.model.model_type)
        batching, _ = plan_batching(config, family, world_size)
        folder = read_model_folder(config.actor.model.model_path)
        memory = rank_memory(on_gpu=False, ranks_on_node=world_size)
        passes = plan_passes(config, family, folder, batching, shard, folder.parameters, on_gpu=False, memory=memory)
        actor = made(context, config, batching, shard, passes)
        value = task(actor, config)
        actor.close()
        queue.put((rank, None, value))
    except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
        queue.put((rank, traceback.format_exc(), None))


def train(actor: Any, config: Config) -> list[dict[str, float]]:
    """A task: all steps of the run; the metrics of each."""
    schedule = resolve_schedule(config, actor.load().train_rows)
    actor.start_training(schedule)
    return [actor.train_step(step) for step in range(schedule.total_steps)]


def whole_weights(actor: Any) -> dict[str, Any]:
    """Copies of an actor's weights by their Hugging Face names, whole on every rank; every rank calls it."""
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
        for name, tensor in actor.policy.state().items()
    }


def evaluate(actor: Any, config: Config) -> list[Any]:
    """A task: one evaluation; this rank's records."""
    actor.load()
    return actor.evaluate()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
