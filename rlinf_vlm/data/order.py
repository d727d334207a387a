"""Which row comes when. Pure arithmetic on one endless stream of rows, so that a run can start anywhere in it.

The stream is epoch 0's order, then epoch 1's, and so on. Sample number k is row ``k % rows`` of the order of epoch
``k // rows``; finding it costs one permutation, whatever k is, and depends neither on the number of ranks nor on the
loading processes. A cursor is therefore one integer: the samples consumed so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStream:
    """The order of the training rows over all epochs.

    rows: rows of the dataset; seed: of the shuffling; block: neighbouring rows that stay together when shuffled.
    """

    rows: int
    seed: int
    shuffle: bool
    block: int = 1

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row indices of one epoch, [rows] int64. Blocks move as a whole; rows inside keep their order."""
        if not self.shuffle:
            return np.arange(self.rows)
        blocks = -(-self.rows // self.block)
        order = np.random.default_rng([self.seed, epoch]).permutation(blocks)
        if self.block == 1:
            return order
        rows = (order[:, None] * self.block + np.arange(self.block)[None, :]).reshape(-1)
        return rows[rows < self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSteps:
    """This rank's rows, optimizer step by optimizer step: what a DataLoader takes as its batch sampler.

    Each step is the next ``global_batch`` samples of the stream from ``first`` on, cut at ``total``; ranks take
    contiguous equal parts of it (the last part may be short, and empty in the run's last step).
    """

    stream: RowStream
    global_batch: int
    total: int
    rank: int
    world_size: int
    first: int = 0
    """Samples of the stream that were consumed before."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the rows of each step."""
        share = self.global_batch // self.world_size
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for begin in range(self.first, self.total, self.global_batch):
            first = begin + self.rank * share
            rows: list[int] = []
            for sample in range(first, min(first + share, self.total)):
                wanted, offset = divmod(sample, self.stream.rows)
                if wanted != epoch:
                    epoch, order = wanted, self.stream.epoch_order(wanted)
                rows.append(int(order[offset]))
            yield rows

    def __len__(self) -> int:
        """Steps that are left."""
        return len(range(self.first, self.total, self.global_batch))


def eval_rows(rows: int, rank: int, world_size: int) -> range:
    """The rows that ``rank`` evaluates: contiguous, all rows covered once over the ranks."""
    return range(rows * rank // world_size, rows * (rank + 1) // world_size)
