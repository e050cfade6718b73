"""Data-parallel training: processes that each train on a part of every step, and their sums.

Each process has the whole model and the same settings, and reads the same rows (`Rows.part`). The loop adds up
gradients, losses and metrics over the processes, so all of them do the same step, which is that of one process alone.
Each sum begins with a question to all, so that the failure of one ends the others at their next sum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from macllm.errors import MacllmError

from .contract import Arrays
from .snapshot import Sums


class PeerError(MacllmError):
    """The end of another process of the run."""


class Group(Protocol):
    """The processes of a run, `size` of them; this one has number `rank`."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Sums over the processes, which all call this in turn with arrays of the same shapes.

        The results have the same bits in each process.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """A group of one process."""

    rank: int = 0
    size: int = 1

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """The arrays."""
        return list(arrays)


class Distributed:
    """The processes of `mx.distributed`, by any of its backends."""

    def __init__(self, group: Any = None) -> None:
        """The processes of a `mx.distributed.Group`; without one, of the group that the environment describes."""
        self._group = mx.distributed.init() if group is None else group
        self.rank: int = self._group.rank()
        self.size: int = self._group.size()
        self._is_broken = False  # by an unfinished sum

    def sum(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Sums over the processes, one after another, so that no two processes wait for each other's next.

        Raises PeerError if the connection to another process is lost.
        """
        if self._is_broken:
            raise _ended("a sum over the processes was not finished")
        self._is_broken = True
        summed: list[mx.array] = []
        for array in arrays:
            summed.append(mx.distributed.all_sum(array, group=self._group))
            try:
                mx.eval(summed[-1])
            except RuntimeError as error:
                raise _ended(str(error)) from error
        self._is_broken = False
        return summed


def agree(group: Group) -> None:
    """Wait until all processes call this. Raises PeerError if one of them calls `leave` instead."""
    if group.size > 1 and _leaving(0.0, group):
        raise _ended("it failed or was stopped")


def leave(error: BaseException, group: Group) -> None:
    """Tell the other processes, at their next `agree`, that this one ends with `error`."""
    if group.size > 1 and not isinstance(error, PeerError):
        with suppress(PeerError):
            _leaving(1.0, group)


def _ended(cause: str) -> PeerError:
    remedy = "see the error of that process, then start all of them with --resume"
    return PeerError("another process of the run has ended", cause=cause, remedy=remedy)


def _leaving(this: float, group: Group) -> float:
    """The number of processes that leave, `this` of them this one."""
    return float(np.array(group.sum([mx.array([this])])[0])[0])


def sum_gradients(gradients: Arrays, weights: Arrays, group: Group) -> Arrays:
    """Gradients of the weights, summed over the processes; none at all count as zeros.

    Raises PeerError if another process has ended.
    """
    if group.size == 1:
        return gradients
    agree(group)
    given = [gradients.get(name, mx.zeros(weight.shape, weight.dtype)) for name, weight in weights.items()]
    return dict(zip(weights, group.sum(given), strict=True))


def sum_losses(sums: Sums, group: Group) -> Sums:
    """Losses, units, tokens and metrics, summed over the processes; a metric that one lacks is 0 there.

    Raises PeerError if another process has ended.
    """
    if group.size == 1:
        return sums
    agree(group)
    names = _all_names(list(sums.metrics), group)
    values = [sums.numerator, sums.denominator, sums.tokens, *(sums.metrics.get(name, 0.0) for name in names)]
    (total,) = group.sum([mx.array(values, dtype=mx.float32)])
    numerator, denominator, tokens, *metrics = np.array(total).tolist()
    metrics = dict(zip(names, metrics, strict=True))
    return replace(sums, numerator=numerator, denominator=denominator, tokens=round(tokens), metrics=metrics)


def _all_names(names: list[str], group: Group) -> list[str]:
    """The names of all processes, sorted: each writes its own into a row of a matrix of zeros."""
    text = json.dumps(names).encode()
    lengths = np.zeros(group.size, dtype=np.float32)
    lengths[group.rank] = len(text)
    lengths = np.array(group.sum([mx.array(lengths)])[0]).astype(int)
    written = np.zeros((group.size, lengths.max()), dtype=np.float32)
    written[group.rank, : len(text)] = np.frombuffer(text, dtype=np.uint8)
    rows = np.array(group.sum([mx.array(written)])[0]).astype(np.uint8)
    return sorted({name for row, n in zip(rows, lengths, strict=True) for name in json.loads(row[:n].tobytes())})
