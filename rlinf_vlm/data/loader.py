"""Rows are read, rendered and packed ahead of the training, in processes of their own.

    RankSteps (which rows) -> RowReader in a loading process -> StepCollator -> RankStep -> the actor

A RankStep is all that one rank needs for one optimizer step. A row that cannot be used never raises in a loading
process: it becomes a line that names file and row, and the actor stops or counts it (``data.on_bad_row``). Which rows
come next is arithmetic of the step number (``order``), so a run starts anywhere at no cost and there is no loader state
to keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from rlinf_vlm.data.order import RankSteps
from rlinf_vlm.data.packing import collate, empty_micro_batch, pack_first_fit, split_by_count
from rlinf_vlm.data.rendering import Renderer
from rlinf_vlm.types import Conversation, MicroBatch, RowError, Sample


class Rows(Protocol):
    """Random access to the rows of files."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One row, images undecoded."""

    def locate(self, index: int) -> tuple[str, int]:
        """File and row in that file."""

    def folder_of(self, index: int) -> Path | None:
        """Folder that relative image paths of the row start from."""


class Kind(Protocol):
    """Reads a row as a conversation."""

    def convert(self, row: Mapping[str, Any]) -> Conversation:
        """Raises RowError when the row cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be used: ``FILE row N: reason``."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """One rank's part of one optimizer step.

    micro_batches: may be empty; num_samples: rows in them; bad_rows: rows that are left out; failure: set when the
    rows cannot be put into one batch at all.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_samples: int
    bad_rows: tuple[BadRow, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalBatch:
    """Rows of one evaluation pass. ``samples`` are the segments of ``micro_batch``, in order; a choice question gives
    one segment a choice."""

    micro_batch: MicroBatch
    samples: tuple[Sample, ...]
    bad_rows: tuple[BadRow, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader(Dataset):
    """Row index -> rendered samples, or BadRow. ``all_choices`` renders every choice of a choice question."""

    rows: Rows
    kind: Kind
    renderer: Renderer
    all_choices: bool = False

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Sample] | BadRow:
        """The samples of row ``index``: one, or one for each choice."""
        base = self.rows.folder_of(index)
        try:
            conversation = self.kind.convert(self.rows[index])
            if self.all_choices:
                return self.renderer.render_choices(conversation, row=index, base=base)
            return [self.renderer.render(conversation, row=index, base=base)]
        except RowError as error:
            file, row = self.rows.locate(index)
            return BadRow(row=index, reason=f"{file} row {row}: {error}")
        except Exception as error:
            error.add_note("while reading {} row {}".format(*self.rows.locate(index)))
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCollator:
    """Samples of one rank's step -> RankStep. Exactly one of ``micro_batch_size`` and ``max_tokens`` is set."""

    image_token_id: int
    micro_batch_size: int | None
    max_tokens: int | None

    def __call__(self, items: Sequence[list[Sample] | BadRow]) -> RankStep:
        """Groups the usable samples into micro-batches."""
        bad, samples = _split(items)
        if self.max_tokens is not None:
            groups = pack_first_fit([len(sample.input_ids) for sample in samples], self.max_tokens)
        else:
            assert self.micro_batch_size is not None, "either a token budget or a sample count is given"
            groups = split_by_count(len(samples), self.micro_batch_size)
        try:
            batches = tuple(collate([samples[index] for index in group], self.image_token_id) for group in groups)
        except RowError as error:
            return RankStep(micro_batches=(), num_samples=0, bad_rows=bad, failure=str(error))
        return RankStep(micro_batches=batches, num_samples=len(samples), bad_rows=bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCollator:
    """Samples of one evaluation batch -> EvalBatch, one micro-batch."""

    image_token_id: int

    def __call__(self, items: Sequence[list[Sample] | BadRow]) -> EvalBatch:
        """A batch without a usable row still holds an (empty) micro-batch: every rank makes the same passes."""
        bad, samples = _split(items)
        empty = EvalBatch(micro_batch=empty_micro_batch(), samples=(), bad_rows=bad)
        if not samples:
            return empty
        try:
            micro_batch = collate(samples, self.image_token_id)
        except RowError as error:
            return EvalBatch(micro_batch=empty.micro_batch, samples=(), bad_rows=bad, failure=str(error))
        # The tensors travel in the micro-batch; the samples only say what its segments are.
        return EvalBatch(
            micro_batch=micro_batch, samples=tuple(_without_images(item) for item in samples), bad_rows=bad
        )


def train_steps(reader: RowReader, steps: RankSteps, collator: StepCollator, num_workers: int) -> Iterator[RankStep]:
    """The steps of this rank, in order, loaded ahead by ``num_workers`` processes (0: in this one)."""
    return _load(reader, steps, collator, num_workers)


def eval_batches(
    reader: RowReader, rows: range, batch_size: int, num_batches: int, collator: EvalCollator, num_workers: int
) -> Iterator[EvalBatch]:
    """Exactly ``num_batches`` batches that cover ``rows`` in order; those past the end are empty."""
    groups = [list(rows[start * batch_size : (start + 1) * batch_size]) for start in range(num_batches)]
    return _load(reader, groups, collator, num_workers)


def _load(reader: RowReader, batches: Any, collator: Any, num_workers: int) -> Iterator[Any]:
    # Forked: the readers share the memory-mapped rows, and starting them takes no imports. They touch no GPU.
    context = "fork" if num_workers else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores: as asked
        loader = DataLoader(
            reader,
            batch_sampler=batches,
            collate_fn=collator,
            num_workers=num_workers,
            multiprocessing_context=context,
            # Of its own: the loader draws a seed when it starts, which would move the training's random state.
            generator=torch.Generator(),
            # A batch is a whole step of this rank; one ahead for each process is enough, and shared memory is scarce.
            prefetch_factor=None if not num_workers else max(1, 2 // num_workers),
        )
        return iter(loader)


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
        position_ids=sample.position_ids[:, :0],
        images=(),
        prompt_length=sample.prompt_length,
        conversation=conversation,
        choice=sample.choice,
    )
