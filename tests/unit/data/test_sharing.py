"""Loading processes that cannot go on: told in one line, and the training does not wait for ever."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rlinf_vlm.data.loader import Ahead, EvalBatch, EvalCollator, RankStep, StepCollator, eval_batches, train_steps
from rlinf_vlm.data.order import RankSteps, RowStream
from rlinf_vlm.data.reading import BatchReader, ReadRows
from rlinf_vlm.types import Conversation, UserError
from tests.unit.data.builders import image, sample

PAD = 9
PATIENCE_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited(BatchReader):
    """Ten tokens a row; with an image of ``features`` tokens. What a loading process shares may have ``limit`` bytes a
    piece; on row ``deadly`` it is killed."""

    reader: Any = None
    limit: int | None = None
    features: int = 0
    deadly: int = -1

    def __getitem__(self, rows: Any) -> ReadRows:
        if self.limit is not None:
            # Python ignores the signal that comes with it, so that the system call fails.
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        if self.deadly in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        return ReadRows(items=tuple([self.row(index)] for index in rows))

    def row(self, index: int) -> Any:
        pictures = (image(str(index), PAD, self.features, index),) if self.features else ()
        made = sample([1] * 10 + [PAD] * self.features + [2], [10 + self.features], pictures, index)
        talk = Conversation(messages=(), images=(), question="", answer="")
        return type(made)(**{**{name: getattr(made, name) for name in made.__slots__}, "conversation": talk})


def steps_of(reader: Limited) -> Iterator[RankStep]:
    steps = RankSteps(stream=RowStream(rows=12, seed=0, shuffle=False), global_batch=4, total=12, rank=0, world_size=1)
    collator = StepCollator(image_token_id=PAD, micro_batch_size=2, max_tokens=None)
    return train_steps(reader, steps, collator, Ahead(num_workers=1))


def evaluation_of(reader: Limited) -> Iterator[EvalBatch]:
    collator = EvalCollator(image_token_id=PAD)
    return eval_batches(reader, range(12), 4, 3, collator, Ahead(num_workers=1))


def in_time(work: Callable[[], Any]) -> Any:
    """What ``work`` gives or raises; a failure where it waits for ever."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except UserError as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert found, "it waits for what never comes"
    return found[0]


@pytest.mark.parametrize("load", [steps_of, evaluation_of])
@pytest.mark.parametrize(
    ("limit", "features"), [(16, 0), (16, 4), (4000, 100)], ids=["tokens", "tokens, images", "images"]
)
def test_too_little_shared_memory_is_a_line(load, limit, features):
    error = in_time(lambda: list(load(Limited(limit=limit, features=features))))
    assert isinstance(error, UserError)
    line = str(error)
    assert line.startswith("data.num_workers=1: a loading process gets no 0.0 MiB of shared memory (")
    assert "File too large" in line and "--shm-size" in line and "\n" not in line
    assert [batch.failure for batch in load(Limited(limit=10**6, features=features))] == [None] * 3


def test_a_batch_without_rows_is_shared_as_well():
    reader = Limited(limit=2)
    batches = eval_batches(reader, range(0), 4, 1, EvalCollator(image_token_id=PAD), Ahead(num_workers=1))
    assert "shared memory" in str(in_time(lambda: list(batches)))


@pytest.mark.parametrize("load", [steps_of, evaluation_of])
def test_every_tensor_arrives_in_shared_memory(load):
    for batch in load(Limited(features=4)):
        micro_batches = batch.micro_batches if isinstance(batch, RankStep) else (batch.micro_batch,)
        for micro_batch in micro_batches:
            values = [getattr(micro_batch, name) for name in micro_batch.__slots__]
            tensors = [value for value in values if isinstance(value, torch.Tensor)]
            assert len(tensors) == 6
            assert all(tensor.is_shared() for tensor in (*tensors, *micro_batch.image_inputs.values()))
        if isinstance(batch, EvalBatch):
            assert [item.row for item in batch.samples]
            assert all(item.input_ids.is_shared() and item.labels.is_shared() for item in batch.samples)
            assert not any(item.position_ids.untyped_storage().nbytes() for item in batch.samples)


def test_a_loading_process_that_is_killed_is_a_line():
    error = in_time(lambda: list(steps_of(Limited(deadly=6))))
    assert isinstance(error, UserError)
    assert str(error).startswith("data.num_workers=1: a loading process has died (DataLoader worker (pid")
    assert "lower data.num_workers" in str(error) and "\n" not in str(error)
