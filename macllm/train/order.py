"""Rows of each batch as a pure function of (seed, step): a resumed run needs no iterator state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .pack import best_fit

# Rows are sorted by length within pools of this many batches: little padding, and still a random order. An epoch has at
# least so many pools, or few rows would share their batches with the same ones in every epoch.
_POOL_BATCHES, _FEWEST_POOLS = 32, 4

Bin = tuple[int, ...]
"""Indices of the rows that share one row of a batch."""


class Order:
    """Batches of bins, every row once an epoch, shuffled by (seed, epoch).

    A bin has one row, and rows of similar lengths share a batch. With `bin_size`, bins are packed with rows of at most
    that total length. The last batch of an epoch may be smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, bin_size: int = 0) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size, self._seed, self._bin_size = batch_size, seed, bin_size
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        # Depends on the lengths alone, as rows of equal length are interchangeable.
        self.bins_per_epoch = len(self._packed(np.arange(len(lengths)))) if bin_size else len(lengths)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.bins_per_epoch // self._batch_size)

    def bins(self, batch: int) -> tuple[Bin, ...]:
        """The bins of batch number `batch` of the whole run."""
        epoch, position = divmod(batch, self.batches_per_epoch)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[tuple[Bin, ...]]:
        random = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64)))
        rows = random.permutation(len(self._lengths))
        if self._bin_size:
            bins = self._packed(rows)
            return self._batches([bins[i] for i in random.permutation(len(bins))])
        batches: list[tuple[Bin, ...]] = []
        pool = self._batch_size * max(1, min(_POOL_BATCHES, self.batches_per_epoch // _FEWEST_POOLS))
        for start in range(0, len(rows), pool):
            part = rows[start : start + pool]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += self._batches([(int(row),) for row in part])
        return [batches[i] for i in random.permutation(len(batches))]

    def _packed(self, rows: Any) -> list[Bin]:
        return [tuple(int(rows[i]) for i in each) for each in best_fit(self._lengths[rows], self._bin_size)]

    def _batches(self, bins: list[Bin]) -> list[tuple[Bin, ...]]:
        return [tuple(bins[i : i + self._batch_size]) for i in range(0, len(bins), self._batch_size)]
