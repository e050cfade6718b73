"""Sources of batches: training rows in a seeded order, and validation rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, cast

import mlx.nn as nn
import numpy as np

from .contract import B, E, Measures, Objective, Packs
from .events import Counts
from .order import Bin, Order

# Second words of Philox keys, beside the seed; small ones are epochs (`order.py`).
_TRAINING, _VALIDATION, _SAMPLE = 2**63 + 1, 2**63 + 2, 2**63 + 3


class Rows(Generic[E, B]):
    """Batches of rows, each row once an epoch, as a function of (seed, step).

    With `bin_size`, rows of at most that many tokens in all share a row of a batch, and `batch_size` counts these.
    """

    def __init__(
        self,
        objective: Objective[Any, E, B],
        examples: Sequence[E],
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        bin_size: int = 0,
        counts: Counts | None = None,
    ) -> None:
        self._objective, self._examples = objective, examples
        self._accumulation, self._seed = accumulation, seed
        self._micro_batch, self._is_regrouped = batch_size, False
        self._rank, self._size = 0, 1
        self._order = Order([len(e) for e in examples], batch_size, seed, bin_size)
        self._packs = bin_size > 0
        self.counts = counts or Counts()
        if self._packs:
            self.counts = replace(
                self.counts, bins=self._order.bins_per_epoch, bin_tokens=bin_size, binned=len(examples)
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in a pass over the rows; the last may have fewer micro-batches."""
        return -(-self._order.batches_per_epoch // self._accumulation)

    def batches(self, step: int, model: nn.Module) -> Iterator[B]:
        """The micro-batches of step `step`, from 0; only what the objective measures depends on the model."""
        if not isinstance(self._objective, Measures):
            yield from self._collated(step)
            return
        own = list(self._collated(step))
        every = own if self._size == 1 else list(self.part(0, 1)._collated(step))
        yield from measured(self._objective, model, own, every)

    def _collated(self, step: int) -> Iterator[B]:
        for micro, bins in self._micro_batches(step):
            random = _generator(self._seed, _TRAINING, step, micro)
            examples = [[self._examples[i] for i in each] for each in bins]
            if self._packs:
                yield cast("Packs[E, B]", self._objective).pack(examples, random)
            else:
                yield self._objective.collate([example for (example,) in examples], random)

    def regrouped(self, micro_batch: int) -> Rows[E, B]:
        """The source of the same rows in each step, in micro-batches of another size."""
        one = copy.copy(self)
        one._is_regrouped = self._is_regrouped or micro_batch != self._micro_batch
        one._micro_batch = micro_batch
        return one

    def part(self, rank: int, size: int) -> Rows[E, B]:
        """The source of process `rank` of `size`: together they have the rows of each step once.

        A part is as large as the others or has one row (or bin) less, and may be empty.
        """
        if not 0 <= rank < size:
            raise ValueError(f"process {rank} of {size}")
        one = copy.copy(self)
        one._rank, one._size = rank, size
        return one

    def _micro_batches(self, step: int) -> Iterator[tuple[int, Sequence[Bin]]]:
        """Micro-batches of this process, and their numbers among those of all processes."""
        epoch, number = divmod(step, self.steps_per_epoch)
        first, per_epoch = number * self._accumulation, self._order.batches_per_epoch
        last = min(first + self._accumulation, per_epoch)
        whole = [self._order.bins(epoch * per_epoch + batch) for batch in range(first, last)]
        if self._size == 1 and not self._is_regrouped:
            yield from enumerate(whole)
            return
        bins = [each for batch in whole for each in batch]
        bounds = [rank * len(bins) // self._size for rank in range(self._size + 1)]
        starts = [range(*part, self._micro_batch) for part in itertools.pairwise(bounds)]
        before = sum(map(len, starts[: self._rank]))
        stop = bounds[self._rank + 1]
        for micro, start in enumerate(starts[self._rank], before):
            yield micro, bins[start : min(start + self._micro_batch, stop)]


class Validation(Generic[E, B]):
    """Batches for evaluation: the same at each evaluation."""

    def __init__(
        self,
        objective: Objective[Any, E, B],
        examples: Sequence[E],
        *,
        batch_size: int,
        most: int,
        seed: int,
        counts: Counts | None = None,
        micro_batch: int | None = None,
    ) -> None:
        """At most `most` batches of the examples, sorted by length; -1 for all.

        A sample is drawn from (seed, examples): one example from each of equal parts of the sorted ones, so that it has
        the lengths of the whole. It goes through the model in batches of `micro_batch` examples, or of `batch_size`.
        """
        by_length = sorted(examples, key=len)
        if 0 <= most < -(-len(by_length) // batch_size):
            count = most * batch_size
            bounds = [at * len(by_length) // max(1, count) for at in range(count + 1)]
            random = _generator(seed, _SAMPLE)
            by_length = [by_length[random.integers(*part)] for part in itertools.pairwise(bounds)]
        size = micro_batch or batch_size
        batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
        self._batches, self._objective, self._seed = batches, objective, seed
        self.counts = counts or Counts()
        self.num_examples = len(examples)
        self.num_sampled = len(by_length)

    def __len__(self) -> int:
        return len(self._batches)

    def batches(self) -> Iterator[B]:
        """The batches, in order."""
        for number, examples in enumerate(self._batches):
            yield self._objective.collate(examples, _generator(self._seed, _VALIDATION, number))


def measured(
    objective: Objective[Any, Any, B], model: nn.Module, batches: Iterable[B], step: Sequence[B] | None = None
) -> Iterable[B]:
    """The batches with what the objective measures over `step`, or over themselves."""
    if not isinstance(objective, Measures):
        return batches
    own = list(batches)
    return objective.measured(model, own, own if step is None else step)


def _generator(seed: int, purpose: int, *position: int) -> np.random.Generator:
    """Random numbers as a function of the arguments."""
    counter = np.zeros(4, dtype=np.uint64)
    counter[2 : 2 + len(position)] = position
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64), counter=counter))
