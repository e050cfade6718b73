"""Quick trial of the Metal kernels that the loaded model needs, while its engine is idle.

A form is an op, a type and sizes (`approved.key`). Each is tried in a child process as `macllm doctor --kernels` tries
it, correctness first and then speed, but for less time. Its decision is kept as soon as it is made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from macllm.child import Exit
from macllm.generation.contract import OnStatus, Status
from macllm.generation.engines.worker import memory_use
from macllm.ops import dispatch
from macllm.ops.metal import approved
from macllm.ops.metal.approved import Decisions

from .benchmark import QUICK, CaseResult, Effort
from .case import Case
from .cases import cases
from .subprocess import TrialProcess, crashed, is_validated

BUDGET_SECONDS = 30.0
"""Time that all trials of an engine may take together."""
CASE_SECONDS = 10.0
"""Time that a case may take; the first of a process has as much again, for MLX to be loaded."""
ROOM_BYTES = 2 << 30
"""Memory that must be left beside the model, for a trial's arrays."""
TRIAL_STATUS = "trying Metal kernels"

log = logging.getLogger(__name__)


class Process(Protocol):
    """Process that tries cases: `TrialProcess`."""

    def next(self, timeout_seconds: float) -> CaseResult | Exit | None:
        """Wait for the next verdict. The end of the process comes in its place; None where the time is over."""

    def interrupt(self) -> None:
        """Let `next` return None at once."""

    def end(self) -> None:
        """End the process now."""


class QuickTrial:
    """Trials of the keys in `dispatch.undecided`; the model's thread calls `resume` and `pause`."""

    def __init__(
        self,
        on_status: OnStatus = lambda status: None,
        *,
        start: Callable[[Sequence[int], Effort], Process] = TrialProcess,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` begins to try cases by their index in `cases`; `clock` returns seconds."""
        self._on_status, self._start, self._clock = on_status, start, clock
        self._left_seconds = BUDGET_SECONDS
        self._known: list[Case] = []
        self._found: dict[int, CaseResult] = {}
        self._decided: dict[str, bool] = {}
        self._wanted: list[str] = []
        self._changed = False  # decisions that do not hold in this process yet
        self._paused = threading.Event()
        self._process: Process | None = None
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Continue the last trial in a thread, if cases and budget are left."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or self._left_seconds <= 0 or not dispatch.undecided or is_validated() or not _has_room():
            return
        approved.load.cache_clear()  # another process may have decided
        self._known = self._known or list(cases())
        kept = approved.load() or Decisions()
        self._wanted = [key for key, _ in dispatch.undecided.most_common() if key not in kept.decisions]
        self._paused.clear()
        if self._needed():
            self._thread = threading.Thread(target=self._run, name="trial of Metal kernels", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stop at once, without waiting for it, and let the decisions made so far hold."""
        self._paused.set()
        if (process := self._process) is not None:
            process.interrupt()
        if self._changed:
            self._changed = False
            approved.load.cache_clear()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end of the trial in progress; whether it has come."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        """The trial's thread."""
        try:
            with approved.alone(wait=False) as alone:
                if not alone:
                    return
                self._on_status(Status(TRIAL_STATUS, transient=True))
                try:
                    while not self._paused.is_set() and self._left_seconds > 0 and (numbers := self._needed()):
                        self._try(numbers)
                finally:
                    self._on_status(Status("", transient=True))
        except OSError as error:  # no process, or nowhere to keep what is found: nothing is gained by trying on
            log.warning("no Metal kernel can be tried: %s", error)
            self._left_seconds = 0.0

    def _try(self, numbers: Sequence[int]) -> None:
        """Try cases in one process until done, a wrong kernel, the end of the budget, or a pause."""
        began, budget = self._clock(), self._left_seconds
        process = self._process = self._start(numbers, QUICK)
        try:
            for number in numbers:
                if self._paused.is_set():
                    return
                longest = CASE_SECONDS * (2 if number == numbers[0] else 1)
                patience = min(longest, budget - (self._clock() - began))
                came = process.next(patience)
                if isinstance(came, CaseResult):
                    self._found[number] = came
                elif self._paused.is_set() or (came is None and patience < longest):
                    return
                else:
                    self._found[number] = crashed(self._known[number], came, longest)
                self._decide()
                if not self._found[number].is_right:
                    return  # the rest of its op need not be tried, and may not be if the process is gone
        finally:
            self._process = None
            process.end()
            self._left_seconds = budget - (self._clock() - began)

    def _needed(self) -> list[int]:
        """Places of the cases that are left to try: those of the form that was asked for most often first."""
        numbers = [n for key in self._wanted if key not in self._decided for n in self._cases(key)]
        return [n for n in dict.fromkeys(numbers) if n not in self._found]

    def _cases(self, key: str) -> list[int]:
        """Places of a form's cases: small ones of all sizes, then its own timed ones. [] where none is timed."""
        timed = [n for n, case in enumerate(self._known) if case.timed and case.key == key]
        alike = {(self._known[n].op, self._known[n].dtype) for n in timed}
        return [n for n, case in enumerate(self._known) if not case.timed and (case.op, case.dtype) in alike] + timed

    def _decide(self) -> None:
        """Save the decision of each form that is decided; a wrong kernel is rejected for all sizes."""
        decided: dict[str, bool] = {}
        reasons: dict[str, str] = {}
        for key in dict.fromkeys([*self._wanted, *(approved.load() or Decisions()).quick]):
            if (against := self._against(key)) is not None:
                decided[key], reasons[key] = False, f"{against.label}: {against.rejection}"
            elif (needed := self._cases(key)) and all(n in self._found for n in needed):
                decided[key] = True
        decided = {key: used for key, used in decided.items() if self._decided.get(key) != used}
        if decided:
            approved.add(Decisions(decided, {key: reasons[key] for key in decided if key in reasons}))
            self._decided |= decided
            self._changed = True

    def _against(self, key: str) -> CaseResult | None:
        """A verdict that speaks against a form: its kernel is wrong for any size, or no faster for these."""
        own = {self._found[n] for n in self._cases(key) if n in self._found}
        for verdict in self._found.values():
            alike = key.startswith(f"{verdict.op} {verdict.dtype} ")
            if (alike and not verdict.is_right) or (verdict in own and verdict.rejection is not None):
                return verdict
        return None


def _has_room() -> bool:
    """The model leaves enough memory for a trial."""
    use = memory_use()
    return use.limit_bytes - use.active_bytes >= ROOM_BYTES
