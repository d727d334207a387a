"""Row numbers -> rendered samples: what a loading process does with the rows of one batch.

    numbers of a batch's rows -> [measured and cut: this rank's part] -> RowReader, row by row -> ReadRows

A row that cannot be used never raises: it becomes a ``BadRow`` that names file and row, reported by the one rank whose
part it falls to. With a ``Share``, the numbers are those of the whole step, over all ranks. Every rank measures all of
them, by text and image headers, and cuts by the same numbers: nothing is exchanged. A measure that is wrong costs
balance and nothing else, as long as it is wrong on all ranks alike; ``ReadRows.division`` lets the ranks make sure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import Dataset

from rlinf_vlm.data.balance import cut_by_cost, pack_evenly
from rlinf_vlm.data.rendering import Renderer, RowSize
from rlinf_vlm.types import Conversation, RowError, Sample


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
class Share:
    """Which part of a step's rows a rank reads: its equal part of the cost. feature_weight: what the vision tower costs
    of an image token, in units of what the language model costs of a token; max_tokens: budget of a micro-batch."""

    rank: int
    world_size: int
    feature_weight: float
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRows:
    """Rows in order: the samples of each, or why it has none. Of a step that was cut by cost, division: digest of the
    cut, else 0; passes: micro-batches that the rank with the most needs, by what was measured."""

    items: tuple[list[Sample] | BadRow, ...]
    division: int = 0
    passes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
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
            with self._named(index):
                conversation = self.kind.convert(self.rows[index])
                if self.all_choices:
                    return self.renderer.render_choices(conversation, row=index, base=base)
                return [self.renderer.render(conversation, row=index, base=base)]
        except RowError as error:
            file, row = self.rows.locate(index)
            return BadRow(row=index, reason=f"{file} row {row}: {error}")

    def prompt(self, index: int) -> Sample | BadRow:
        """The prompt of row ``index``, which nothing answers yet."""
        base = self.rows.folder_of(index)
        try:
            with self._named(index):
                return self.renderer.render_prompt(self.kind.convert(self.rows[index]), row=index, base=base)
        except RowError as error:
            file, row = self.rows.locate(index)
            return BadRow(row=index, reason=f"{file} row {row}: {error}")

    def measure(self, index: int) -> RowSize | None:
        """The size of row ``index``, images undecoded: of nothing for a bad row; None where it is not to be told."""
        base = self.rows.folder_of(index)
        try:
            with self._named(index):
                return self.renderer.measure(self.kind.convert(self.rows[index]), base=base)
        except RowError:
            return RowSize(tokens=0, images=())

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Adds file and row to errors of the program's own."""
        try:
            yield
        except RowError:
            raise
        except Exception as error:
            error.add_note("while reading {} row {}".format(*self.rows.locate(index)))
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReader(Dataset):
    """Numbers of a batch's rows -> ReadRows; with a ``share``, of its rank's part of them."""

    reader: RowReader
    share: Share | None = None

    def __getitem__(self, rows: Sequence[int]) -> ReadRows:
        """Reads this rank's rows of ``rows``, in order."""
        if self.share is None:
            return ReadRows(items=tuple(self.reader[row] for row in rows))
        sizes = [self.reader.measure(row) for row in rows]
        bounds = cut_by_cost(row_costs(sizes, self.share.feature_weight), self.share.world_size)
        own = rows[bounds[self.share.rank] : bounds[self.share.rank + 1]]
        return ReadRows(
            items=tuple(self.reader[row] for row in own),
            division=zlib.crc32(repr(bounds).encode()),
            passes=most_passes(sizes, bounds, self.share.max_tokens),
        )


def most_passes(sizes: Sequence[RowSize | None], bounds: Sequence[int], max_tokens: int) -> int:
    """Micro-batches of the rank that needs the most; rows that are not measured or fit into none count as nothing.

    A rank that needs fewer divides its rows into as many, instead of running empty ones beside full ones.
    """
    lengths = [0 if size is None or size.tokens > max_tokens else size.tokens for size in sizes]
    return max(1, *(len(pack_evenly(lengths[start:stop], max_tokens)) for start, stop in pairwise(bounds)))


def row_costs(sizes: Sequence[RowSize | None], feature_weight: float) -> list[float]:
    """The cost of each row in tokens of the language model: its tokens, and ``feature_weight`` for each token of its
    images, an image that an earlier row has counting there alone. A size of None: the mean of the others.

    Example: two rows of 10 tokens with one image of 4 between them cost 12 and 10 at a weight of 0.5.
    """
    seen: set[bytes] = set()
    costs: list[float | None] = []
    for size in sizes:
        if size is None:
            costs.append(None)
            continue
        cost = float(size.tokens)
        for key, features in size.images:
            if key is None or key not in seen:
                cost += feature_weight * features
            if key is not None:
                seen.add(key)
        costs.append(cost)
    known = [cost for cost in costs if cost is not None]
    mean = sum(known) / len(known) if any(known) else 1.0
    return [mean if cost is None else cost for cost in costs]
