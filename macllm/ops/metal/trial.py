"""Each kernel against MLX's own operations on this machine: is it right, and is it faster?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from .cases import Case, cases

TOGETHER = 64  # dispatches that are timed as one
TURNS = 5
WORTH = 1.03  # a kernel that is not faster by 3 % is not worth a difference


@dataclass(frozen=True)
class Verdict:
    """What became of a case: how far apart the results are (1 is allowed), and MLX's time over ours, twice."""

    op: str
    label: str
    dtype: str
    apart: float | None
    speedups: tuple[float, ...] = ()
    error: str | None = None

    @property
    def is_right(self) -> bool:
        """Whether the kernel ran and gave what MLX's operations give."""
        return self.apart is not None and self.apart <= 1

    @property
    def is_faster(self) -> bool:
        """Whether it was faster each time; what is not timed does not object."""
        return all(speedup > WORTH for speedup in self.speedups)

    def facts(self) -> dict[str, Any]:
        """All of it, for a report."""
        return {**asdict(self), "right": self.is_right, "faster": self.is_faster if self.speedups else None}


def trials() -> Iterator[Verdict]:
    """Every case, one after another."""
    for case in cases():
        yield tried(case)


def tried(case: Case) -> Verdict:
    """One case; whatever the kernel does wrong is in the verdict."""
    name = str(case.dtype).removeprefix("mlx.core.")
    try:
        apart = case.apart()
    except (RuntimeError, ValueError) as error:
        return Verdict(case.op, case.label, name, None, error=str(error).strip().splitlines()[0])
    speedups = (_speedup(case), _speedup(case)) if case.timed and apart <= 1 else ()
    return Verdict(case.op, case.label, name, apart, speedups)


def decisions(verdicts: list[Verdict]) -> dict[str, bool]:
    """By op and type: whether its kernels are right everywhere and faster wherever they were timed."""
    found: dict[str, bool] = {}
    for verdict in verdicts:
        key = f"{verdict.op} mlx.core.{verdict.dtype}"
        found[key] = found.get(key, True) and verdict.is_right and verdict.is_faster
    return found


def _speedup(case: Case) -> float:
    """MLX's time over ours: medians of turns in the order A B B A, so that a machine that warms up favours neither."""
    for run in (case.ours, case.stock):
        _seconds(run)
    ours, stock = [], []
    for _ in range(TURNS):
        ours.append(_seconds(case.ours))
        stock += [_seconds(case.stock), _seconds(case.stock)]
        ours.append(_seconds(case.ours))
    return statistics.median(stock) / statistics.median(ours)


def _seconds(run: Callable[[], list[mx.array]]) -> float:
    began = time.perf_counter()
    mx.eval([run() for _ in range(TOGETHER)])
    return time.perf_counter() - began
