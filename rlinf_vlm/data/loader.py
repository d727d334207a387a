"""Rows are read, rendered and packed ahead of the training, in processes of their own.

    RankSteps (which rows) -> BatchReader in a loading process -> StepCollator -> RankStep -> the actor

A RankStep is all that one rank needs for one optimizer step. A row that cannot be used never raises in a loading
process: it becomes a line that names file and row, and the actor stops or counts it (``data.on_bad_row``). Which rows
come next is arithmetic of the step number (``order``) and of the rows themselves (``reading``), so a run starts
anywhere at no cost and there is no loader state to keep. For a GPU, a thread moves what arrives to page-locked memory,
ahead of its use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from rlinf_vlm.data.balance import link, pack_evenly
from rlinf_vlm.data.order import RankSteps
from rlinf_vlm.data.packing import collate, empty_micro_batch, split_by_count
from rlinf_vlm.data.reading import BadRow, BatchReader, ReadRows
from rlinf_vlm.data.sharing import SharedMemoryError, share
from rlinf_vlm.types import Conversation, MicroBatch, RowError, Sample, UserError

WORKER_LOST = "DataLoader worker (pid"
"""How torch's message begins when a loading process has ended by a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """One rank's part of one optimizer step.

    micro_batches: may be empty; num_samples: rows in them; bad_rows: rows that are left out; failure: set when the
    rows cannot be put into one batch at all; division: as in ``ReadRows``, the same on all ranks.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_samples: int
    bad_rows: tuple[BadRow, ...] = ()
    failure: str | None = None
    division: int = 0

    def pin_memory(self) -> RankStep:
        """The same in page-locked memory."""
        return replace(self, micro_batches=tuple(batch.pin_memory() for batch in self.micro_batches))


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatch:
    """Rows of one evaluation pass. ``samples`` are the segments of ``micro_batch``, in order; a choice question gives
    one segment a choice."""

    micro_batch: MicroBatch
    samples: tuple[Sample, ...]
    bad_rows: tuple[BadRow, ...] = ()
    failure: str | None = None

    def pin_memory(self) -> EvalBatch:
        """The same with the micro-batch in page-locked memory."""
        return replace(self, micro_batch=self.micro_batch.pin_memory())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCollator:
    """Samples of one rank's step -> RankStep. Exactly one of ``micro_batch_size`` and ``max_tokens`` is set.

    share_images, pixel_dtype: as in ``collate``.
    """

    image_token_id: int
    micro_batch_size: int | None
    max_tokens: int | None
    share_images: bool = True
    pixel_dtype: torch.dtype | None = None

    def __call__(self, rows: ReadRows) -> RankStep:
        """Groups the usable samples into micro-batches."""
        bad, samples = _split(rows.items)
        try:
            batches = tuple(
                collate(
                    [samples[index] for index in group],
                    self.image_token_id,
                    share_images=self.share_images,
                    pixel_dtype=self.pixel_dtype,
                )
                for group in self.groups(samples, rows.passes)
            )
        except RowError as error:
            return RankStep(micro_batches=(), num_samples=0, bad_rows=bad, failure=str(error), division=rows.division)
        share(tensor for batch in batches for tensor in _tensors(batch))
        return RankStep(micro_batches=batches, num_samples=len(samples), bad_rows=bad, division=rows.division)

    def groups(self, samples: Sequence[Sample], at_least: int = 1) -> list[list[int]]:
        """Indices of the samples of each micro-batch; ``at_least``: as in ``pack_evenly``."""
        if self.max_tokens is None:
            assert self.micro_batch_size is not None, "either a token budget or a sample count is given"
            return split_by_count(len(samples), self.micro_batch_size)
        together = link([image.key for image in sample.images] for sample in samples) if self.share_images else None
        return pack_evenly([len(sample.input_ids) for sample in samples], self.max_tokens, together, at_least=at_least)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCollator:
    """Samples of one evaluation batch -> EvalBatch, one micro-batch. share_images, pixel_dtype: as in ``collate``."""

    image_token_id: int
    share_images: bool = True
    pixel_dtype: torch.dtype | None = None

    def __call__(self, rows: ReadRows) -> EvalBatch:
        """A batch without a usable row still holds an (empty) micro-batch: every rank makes the same passes."""
        bad, samples = _split(rows.items)
        micro_batch, failure = empty_micro_batch(), None
        try:
            if samples:
                micro_batch = collate(
                    samples, self.image_token_id, share_images=self.share_images, pixel_dtype=self.pixel_dtype
                )
        except RowError as error:
            samples, failure = [], str(error)
        # The tensors travel in the micro-batch; the samples only say what its segments are.
        segments = tuple(_without_images(item) for item in samples)
        share(_tensors(micro_batch))
        share(tensor for item in segments for tensor in (item.input_ids, item.labels))
        return EvalBatch(micro_batch=micro_batch, samples=segments, bad_rows=bad, failure=failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """How batches are loaded: by ``num_workers`` processes (0: in this one), into page-locked memory or not."""

    num_workers: int
    pin_memory: bool = False


def train_steps(reader: BatchReader, steps: RankSteps, collator: StepCollator, ahead: Ahead) -> Iterator[RankStep]:
    """The steps of this rank, in order. Where ``reader`` has a share, ``steps`` are those of all ranks together."""
    return _load(reader, steps, collator, ahead)


def eval_batches(
    reader: BatchReader, rows: range, batch_size: int, num_batches: int, collator: EvalCollator, ahead: Ahead
) -> Iterator[EvalBatch]:
    """Exactly ``num_batches`` batches that cover ``rows`` in order; those past the end are empty."""
    groups = [list(rows[start * batch_size : (start + 1) * batch_size]) for start in range(num_batches)]
    return _load(reader, groups, collator, ahead)


def _load(reader: BatchReader, batches: Iterable[Sequence[int]], collator: Any, ahead: Ahead) -> Iterator[Any]:
    num_workers = ahead.num_workers
    # Forked: the readers share the memory-mapped rows, and starting them takes no imports. They touch no GPU.
    context = "fork" if num_workers else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores: as asked
        loader = DataLoader(
            reader,
            # A batch is one item of the dataset: its rows are known to each other when they are read.
            sampler=batches,
            batch_size=None,
            collate_fn=collator,
            num_workers=num_workers,
            multiprocessing_context=context,
            pin_memory=ahead.pin_memory,
            # Of its own: the loader draws a seed when it starts, which would move the training's random state.
            generator=torch.Generator(),
            # A batch is a whole step of this rank; one ahead for each process is enough, and shared memory is scarce.
            prefetch_factor=None if not num_workers else max(1, 2 // num_workers),
        )
        return _told(iter(loader), num_workers)


def _told(batches: Iterator[Any], num_workers: int) -> Iterator[Any]:
    """``batches``; UserError where a loading process has no shared memory, or is no more."""
    try:
        yield from batches
    except SharedMemoryError as error:  # torch puts the process's traceback before it
        raise UserError(str(error).strip().splitlines()[-1].partition(f"{SharedMemoryError.__name__}: ")[2]) from error
    except RuntimeError as error:
        if not str(error).startswith(WORKER_LOST):
            raise
        raise UserError(
            f"data.num_workers={num_workers}: a loading process has died ({str(error).split('. ')[0]}); if the system "
            "ended it as memory ran out, lower data.num_workers; data.num_workers=0 loads without such processes"
        ) from error


def _tensors(batch: MicroBatch) -> Iterator[torch.Tensor]:
    """All tensors of a micro-batch."""
    values = (getattr(batch, field.name) for field in fields(batch))
    yield from (value for value in values if isinstance(value, torch.Tensor))
    yield from batch.image_inputs.values()


def _split(items: Sequence[list[Sample] | BadRow]) -> tuple[tuple[BadRow, ...], list[Sample]]:
    bad = tuple(item for item in items if isinstance(item, BadRow))
    samples = [sample for item in items if not isinstance(item, BadRow) for sample in item]
    return bad, samples


def _without_images(sample: Sample) -> Sample:
    assert sample.conversation is not None, "a rendered row knows its conversation"
    conversation = Conversation(
        messages=(),
        images=(),
        question=sample.conversation.question,
        answer=sample.conversation.answer,
        choices=sample.conversation.choices,
        choice_index=sample.conversation.choice_index,
    )
    return Sample(
        row=sample.row,
        input_ids=sample.input_ids,
        labels=sample.labels,
        position_ids=sample.position_ids[:, :0].clone(),  # not what it is a view of
        images=(),
        prompt_length=sample.prompt_length,
        conversation=conversation,
        choice=sample.choice,
    )
