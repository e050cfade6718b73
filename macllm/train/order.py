"""Rows of each batch as a pure function of (seed, step): a resumed run needs no iterator state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# Rows are sorted by length within pools of this many batches: little padding, and still a random order.
_POOL_BATCHES = 32


class Order:
    """Batches of rows of similar length, every row once an epoch, shuffled by (seed, epoch).

    The last batch of an epoch may be smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self._lengths) // self._batch_size)

    def rows(self, batch: int) -> tuple[int, ...]:
        """Indices of the rows of batch number `batch` of the whole run."""
        epoch, position = divmod(batch, self.batches_per_epoch)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        random = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64)))
        rows = random.permutation(len(self._lengths))
        batches: list[tuple[int, ...]] = []
        pool = self._batch_size * _POOL_BATCHES
        for start in range(0, len(rows), pool):
            part = rows[start : start + pool]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [tuple(map(int, part[i : i + self._batch_size])) for i in range(0, len(part), self._batch_size)]
        return [batches[i] for i in random.permutation(len(batches))]
