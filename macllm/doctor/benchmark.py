"""Results of kernel cases: correctness against a reference, speed against MLX's own operations."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from macllm.ops.metal.approved import Decisions

from .case import Arrays, Case, Run
from .cases import cases

TOGETHER = 256
"""Dispatches that are timed as one, one after another: fewer where they take long."""
WORTH = 1.03  # a kernel that is not faster by 3 % is not worth a difference
_LEAST_TOGETHER = 4
_ROTATED_BYTES, _MOST_SETS = 256 << 20, 64  # more than twice what any chip keeps near

Clock = Callable[[], float]
"""Source of seconds."""


@dataclass(frozen=True)
class Effort:
    """Thoroughness of the timing of a case."""

    rounds: int  # each is a `PairTiming`
    turns: int  # ours, stock, stock, ours
    enough_seconds: float  # dispatches are timed together until they take as long


WHOLE = Effort(rounds=2, turns=7, enough_seconds=0.06)
QUICK = Effort(rounds=1, turns=5, enough_seconds=0.03)


@dataclass(frozen=True)
class PairTiming:
    """Seconds of a dispatch, ours and MLX's, and the speedup: medians of turns, and its range.

    Of the turns the two farthest out do not count: something else may have come between.
    """

    seconds: float
    stock_seconds: float
    speedup: float
    lowest: float
    highest: float

    @property
    def is_faster(self) -> bool:
        """Faster in every turn, and by enough to be worth it."""
        return self.speedup > WORTH and self.lowest > 1

    def __str__(self) -> str:
        kind = "no difference beyond noise" if self.lowest <= 1 <= self.highest else "not faster by 3 %"
        kind = "slower" if self.highest < 1 else "faster" if self.is_faster else kind
        return f"{kind}: {self.speedup:.2f} times MLX's speed ({self.lowest:.2f} to {self.highest:.2f})"


@dataclass(frozen=True)
class CaseResult:
    """Result of a case: the kernel's error relative to the tolerance (1 is allowed), and its timings."""

    op: str
    label: str
    dtype: str
    bucket: str
    timed: bool
    apart: float | None = None
    timings: tuple[PairTiming, ...] = ()
    traffic_bytes: int | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        """Key of the decision (`approved.key`)."""
        return f"{self.op} {self.dtype} {self.bucket}"

    @property
    def is_right(self) -> bool:
        """The kernel ran and gave what its definition gives."""
        return self.error is None and self.apart is not None and self.apart <= 1

    @property
    def is_faster(self) -> bool:
        """Timed, and faster each time."""
        return bool(self.timings) and all(timing.is_faster for timing in self.timings)

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes that must be moved at least, over the time it takes."""
        if not self.timings or not self.traffic_bytes:
            return None
        return self.traffic_bytes / min(timing.seconds for timing in self.timings)

    @property
    def rejection(self) -> str | None:
        """Reason to reject the kernel; None if this case gives none."""
        if self.error is not None:
            return self.error
        if self.apart is None or math.isinf(self.apart):
            return "results are no numbers"
        if self.apart > 1:
            return f"results lie {self.apart:.3g} times as far off as is allowed"
        if not self.timed or self.is_faster:
            return None
        return str(min(self.timings, key=lambda timing: timing.speedup)) if self.timings else "not timed"

    def facts(self) -> dict[str, Any]:
        """The verdict as a JSON object, for a report."""
        infinite = self.apart is not None and math.isinf(self.apart)
        told = {"apart": None if infinite else self.apart, "bytes_per_second": self.bytes_per_second}
        return {**asdict(self), **told, "right": self.is_right, "objection": self.rejection}


def trials(some: Iterable[Case] | None = None, *, clock: Clock | None = time.perf_counter) -> Iterator[CaseResult]:
    """Every case, one after another; without a clock none is timed."""
    for case in cases() if some is None else some:
        yield run_case(case, clock)


def run_case(case: Case, clock: Clock | None = time.perf_counter, effort: Effort = WHOLE) -> CaseResult:
    """One case; whatever the kernel does wrong is in the verdict."""
    dtype = str(case.dtype).removeprefix("mlx.core.")
    about = {"op": case.op, "label": case.label, "dtype": dtype, "bucket": case.bucket, "timed": case.timed}
    try:
        apart = case.apart()
        if apart > 1 or not case.timed or clock is None:
            return CaseResult(**about, apart=apart)
        timings = tuple(_timing(case, clock, effort) for _ in range(effort.rounds))
        return CaseResult(**about, apart=apart, timings=timings, traffic_bytes=case.traffic_bytes())
    except Exception as error:  # whatever a kernel does, the others are tried
        return CaseResult(**about, error=_told(error))


def decisions(verdicts: Iterable[CaseResult]) -> Decisions:
    """Decisions: kernels must be correct in every bucket, and faster in each timed case of their own."""
    known = list(verdicts)
    wrong: dict[tuple[str, str], CaseResult] = {}
    for verdict in known:
        if not verdict.is_right:
            wrong.setdefault((verdict.op, verdict.dtype), verdict)
    decided: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    for verdict in known:
        if not verdict.timed:
            continue
        worst = wrong.get((verdict.op, verdict.dtype), verdict)
        decided[verdict.key] = decided.get(verdict.key, True) and worst.rejection is None
        if worst.rejection is not None:
            reasons.setdefault(verdict.key, f"{worst.label}: {worst.rejection}")
    return Decisions(decided, reasons)


def _told(error: Exception) -> str:
    """An error in a line: the first that speaks of one, as compilers tell of much else."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return f"{type(error).__name__}: {first}"[:300].removesuffix(": ")


def time_pair(ours: Clock, stock: Clock, turns: int = WHOLE.turns) -> PairTiming:
    """Time a pair in the order A B B A, so that a machine that slows down favours neither."""
    ours()
    stock()
    times, stock_times, ratios = [], [], []
    for _ in range(turns):
        first, *others = ours(), stock(), stock()
        pair = first + ours()
        times.append(pair / 2)
        stock_times.append(sum(others) / 2)
        ratios.append(sum(others) / pair)
    _, lowest, *_, highest, _ = sorted(ratios)
    return PairTiming(
        statistics.median(times), statistics.median(stock_times), statistics.median(ratios), lowest, highest
    )


def _timing(case: Case, clock: Clock, effort: Effort) -> PairTiming:
    sets = _sets(case)
    together = _together(case, sets, clock, effort)

    def timed(run: Run) -> Clock:
        return lambda: _seconds(case, run, sets, together, clock)

    return time_pair(timed(case.ours), timed(case.stock), effort.turns)


def _sets(case: Case) -> list[Arrays]:
    """The work on so much memory that none of it is still near when its turn comes again."""
    first = case.given(0)
    size = sum(array.nbytes for array in first.values())
    count = max(1, min(_MOST_SETS, -(-_ROTATED_BYTES // max(size, 1))))
    sets = [first, *(case.given(10 * seed) for seed in range(1, count))]
    mx.eval(*(list(one.values()) for one in sets))
    return sets


def _together(case: Case, sets: list[Arrays], clock: Clock, effort: Effort) -> int:
    """Number of dispatches that are timed as one."""
    _seconds(case, case.ours, sets, 1, clock)  # to compile it
    one = max(_seconds(case, run, sets, _LEAST_TOGETHER, clock) for run in (case.ours, case.stock))
    return max(_LEAST_TOGETHER, min(TOGETHER, int(effort.enough_seconds / max(one, 1e-9))))


def _seconds(case: Case, run: Run, sets: list[Arrays], together: int, clock: Clock) -> float:
    """Of one of `together` dispatches, each of which waits for what the one before it has made.

    Only their evaluation counts: a model that runs ahead of the GPU describes the next step meanwhile.
    """
    work, results = sets[0], []
    for i in range(together):
        results = run(work)
        results = mx.depends(results, results)  # so that none is left out
        made, other = case.then(work, results), sets[(i + 1) % len(sets)]
        work = {name: made[name] if made[name] is not work[name] else other[name] for name in made}
    mx.synchronize()
    began = clock()
    mx.eval(results)
    return (clock() - began) / together
