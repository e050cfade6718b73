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

MOST_DISPATCHES = 256
"""Most consecutive dispatches per timing; slow kernels have fewer."""
MIN_SPEEDUP = 1.03  # a smaller gain is not worth a different implementation
_LEAST_DISPATCHES = 4
_ROTATED_BYTES, _MOST_SETS = 256 << 20, 64  # more than twice the largest chip's cache

Clock = Callable[[], float]
"""Source of seconds."""


@dataclass(frozen=True)
class Effort:
    """Thoroughness of the timing of a case."""

    rounds: int  # each is a `PairTiming`
    turns: int  # kernel, stock, stock, kernel
    timing_seconds: float  # length of one timing of several dispatches


WHOLE = Effort(rounds=2, turns=7, timing_seconds=0.06)
QUICK = Effort(rounds=1, turns=5, timing_seconds=0.03)


@dataclass(frozen=True)
class PairTiming:
    """Seconds of a dispatch, the kernel's and MLX's, and the speedup: medians of turns, and its range.

    The range leaves out the lowest and the highest turn, which other load may have disturbed.
    """

    seconds: float
    stock_seconds: float
    speedup: float
    lowest: float
    highest: float

    @property
    def is_faster(self) -> bool:
        """Faster in every turn, and by enough to be worth it."""
        return self.speedup > MIN_SPEEDUP and self.lowest > 1

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
    relative_error: float | None = None
    timings: tuple[PairTiming, ...] = ()
    traffic_bytes: int | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        """Key of the decision (`approved.key`)."""
        return f"{self.op} {self.dtype} {self.bucket}"

    @property
    def is_correct(self) -> bool:
        """The kernel ran, and its results are within the tolerance."""
        return self.error is None and self.relative_error is not None and self.relative_error <= 1

    @property
    def is_faster(self) -> bool:
        """The kernel was timed, and is faster in each round."""
        return bool(self.timings) and all(timing.is_faster for timing in self.timings)

    @property
    def bytes_per_second(self) -> float | None:
        """Least bytes to move, divided by the time."""
        if not self.timings or not self.traffic_bytes:
            return None
        return self.traffic_bytes / min(timing.seconds for timing in self.timings)

    @property
    def rejection(self) -> str | None:
        """Reason to reject the kernel; None if this case gives none."""
        if self.error is not None:
            return self.error
        if self.relative_error is None or math.isinf(self.relative_error):
            return "results are not numbers"
        if self.relative_error > 1:
            return f"the error is {self.relative_error:.3g} times the tolerance"
        if not self.timed or self.is_faster:
            return None
        return str(min(self.timings, key=lambda timing: timing.speedup)) if self.timings else "not timed"

    def facts(self) -> dict[str, Any]:
        """The result as a JSON object, for a report."""
        found = asdict(self)
        error = found.pop("relative_error")
        found |= {"apart": None if error is not None and math.isinf(error) else error}
        return found | {
            "bytes_per_second": self.bytes_per_second,
            "right": self.is_correct,
            "objection": self.rejection,
        }


def trials(some: Iterable[Case] | None = None, *, clock: Clock | None = time.perf_counter) -> Iterator[CaseResult]:
    """Run every case; without a clock none is timed."""
    for case in cases() if some is None else some:
        yield run_case(case, clock)


def run_case(case: Case, clock: Clock | None = time.perf_counter, effort: Effort = WHOLE) -> CaseResult:
    """Run one case; errors of the kernel are in the result."""
    dtype = str(case.dtype).removeprefix("mlx.core.")
    about = {"op": case.op, "label": case.label, "dtype": dtype, "bucket": case.bucket, "timed": case.timed}
    try:
        error = case.error()
        if error > 1 or not case.timed or clock is None:
            return CaseResult(**about, relative_error=error)
        timings = tuple(_timing(case, clock, effort) for _ in range(effort.rounds))
        return CaseResult(**about, relative_error=error, timings=timings, traffic_bytes=case.traffic_bytes())
    except Exception as raised:  # so that the other cases run
        return CaseResult(**about, error=_first_error_line(raised))


def decisions(results: Iterable[CaseResult]) -> Decisions:
    """Decisions: a kernel must be correct in all buckets, and faster in each timed case of its bucket."""
    known = list(results)
    wrong: dict[tuple[str, str], CaseResult] = {}
    for result in known:
        if not result.is_correct:
            wrong.setdefault((result.op, result.dtype), result)
    decided: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    for result in known:
        if not result.timed:
            continue
        worst = wrong.get((result.op, result.dtype), result)
        decided[result.key] = decided.get(result.key, True) and worst.rejection is None
        if worst.rejection is not None:
            reasons.setdefault(result.key, f"{worst.label}: {worst.rejection}")
    return Decisions(decided, reasons)


def _first_error_line(error: Exception) -> str:
    """The error's first line with the word "error", since compilers print others before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return f"{type(error).__name__}: {first}"[:300].removesuffix(": ")


def time_pair(kernel: Clock, stock: Clock, turns: int = WHOLE.turns) -> PairTiming:
    """Time a pair in the order A B B A, so that a machine that slows down favours neither."""
    kernel()
    stock()
    times, stock_times, ratios = [], [], []
    for _ in range(turns):
        first, *others = kernel(), stock(), stock()
        pair = first + kernel()
        times.append(pair / 2)
        stock_times.append(sum(others) / 2)
        ratios.append(sum(others) / pair)
    _, lowest, *_, highest, _ = sorted(ratios)
    return PairTiming(
        statistics.median(times), statistics.median(stock_times), statistics.median(ratios), lowest, highest
    )


def _timing(case: Case, clock: Clock, effort: Effort) -> PairTiming:
    sets = _input_sets(case)
    dispatches = _dispatches_per_timing(case, sets, clock, effort)

    def timed(run: Run) -> Clock:
        return lambda: _seconds(case, run, sets, dispatches, clock)

    return time_pair(timed(case.kernel), timed(case.stock), effort.turns)


def _input_sets(case: Case) -> list[Arrays]:
    """Inputs in so much memory that none of it is still in a cache when it is used again."""
    first = case.make_inputs(0)
    size = sum(array.nbytes for array in first.values())
    count = max(1, min(_MOST_SETS, -(-_ROTATED_BYTES // max(size, 1))))
    sets = [first, *(case.make_inputs(10 * seed) for seed in range(1, count))]
    mx.eval(*(list(one.values()) for one in sets))
    return sets


def _dispatches_per_timing(case: Case, sets: list[Arrays], clock: Clock, effort: Effort) -> int:
    """Number of dispatches that are timed as one."""
    _seconds(case, case.kernel, sets, 1, clock)  # to compile it
    one = max(_seconds(case, run, sets, _LEAST_DISPATCHES, clock) for run in (case.kernel, case.stock))
    return max(_LEAST_DISPATCHES, min(MOST_DISPATCHES, int(effort.timing_seconds / max(one, 1e-9))))


def _seconds(case: Case, run: Run, sets: list[Arrays], dispatches: int, clock: Clock) -> float:
    """Seconds of one dispatch in a chain of `dispatches`, each of which depends on the one before it.

    Inputs rotate over `sets`, so that caches stay cold. Only evaluation is timed: a model builds the graph of the next
    token while the GPU works.
    """
    inputs, results = sets[0], []
    for i in range(dispatches):
        results = run(inputs)
        results = mx.depends(results, results)  # so that no result is left out
        made, other = case.chain(inputs, results), sets[(i + 1) % len(sets)]
        inputs = {name: made[name] if made[name] is not inputs[name] else other[name] for name in made}
    mx.synchronize()
    began = clock()
    mx.eval(results)
    return (clock() - began) / dispatches
