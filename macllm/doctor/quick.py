"""Quick trial of the Metal kernels that the loaded model needs, while its engine is idle.

A key is an op, a type and a bucket of sizes (`approved.key`). Its cases run in a child process, as in `macllm doctor
--kernels` but for less time: correctness first, then speed. Each decision is saved as soon as it is made.
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
"""Time limit of all trials of an engine together."""
CASE_SECONDS = 10.0
"""Time limit of a case; twice as long for the first of a process, which loads MLX."""
ROOM_BYTES = 2 << 30
"""Free memory that a trial requires beside the model."""
TRIAL_STATUS = "trying Metal kernels"

log = logging.getLogger(__name__)


class Process(Protocol):
    """Process that runs cases: `TrialProcess`."""

    def next(self, timeout_seconds: float) -> CaseResult | Exit | None:
        """Wait for the next result, or the process's exit; None after a timeout."""

    def interrupt(self) -> None:
        """Make `next` return None at once."""

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
        """`start` runs cases, given by their index in `cases`, in a process; `clock` returns seconds."""
        self._on_status, self._start, self._clock = on_status, start, clock
        self._left_seconds = BUDGET_SECONDS
        self._known: list[Case] = []
        self._found: dict[int, CaseResult] = {}
        self._decided: dict[str, bool] = {}
        self._wanted: list[str] = []
        self._changed = False  # True if decisions do not apply in this process yet
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
        saved = approved.load() or Decisions()
        self._wanted = [key for key, _ in dispatch.undecided.most_common() if key not in saved.decisions]
        self._paused.clear()
        if self._needed():
            self._thread = threading.Thread(target=self._run, name="trial of Metal kernels", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stop the trial without waiting for it, and apply the decisions made so far."""
        self._paused.set()
        if (process := self._process) is not None:
            process.interrupt()
        if self._changed:
            self._changed = False
            approved.load.cache_clear()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for the end of the trial in progress; returns False after a timeout."""
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
        except OSError as error:  # no process can start, or decisions cannot be saved: give up
            log.warning("Metal kernels cannot be tested: %s", error)
            self._left_seconds = 0.0

    def _try(self, numbers: Sequence[int]) -> None:
        """Run cases in one process until all are done, a kernel is wrong, the budget is spent, or `pause`."""
        began, budget = self._clock(), self._left_seconds
        process = self._process = self._start(numbers, QUICK)
        try:
            for number in numbers:
                if self._paused.is_set():
                    return
                longest = CASE_SECONDS * (2 if number == numbers[0] else 1)
                timeout = min(longest, budget - (self._clock() - began))
                message = process.next(timeout)
                if isinstance(message, CaseResult):
                    self._found[number] = message
                elif self._paused.is_set() or (message is None and timeout < longest):
                    return
                else:
                    self._found[number] = crashed(self._known[number], message, longest)
                self._decide()
                if not self._found[number].is_correct:
                    return  # the op's other cases are skipped, and the process may have ended
        finally:
            self._process = None
            process.end()
            self._left_seconds = budget - (self._clock() - began)

    def _needed(self) -> list[int]:
        """Indices of the cases left to run, those of the most requested key first."""
        numbers = [n for key in self._wanted if key not in self._decided for n in self._cases(key)]
        return [n for n in dict.fromkeys(numbers) if n not in self._found]

    def _cases(self, key: str) -> list[int]:
        """Indices of a key's cases: small ones of all sizes, then its timed ones; [] if it has no timed case."""
        timed = [n for n, case in enumerate(self._known) if case.timed and case.key == key]
        alike = {(self._known[n].op, self._known[n].dtype) for n in timed}
        return [n for n, case in enumerate(self._known) if not case.timed and (case.op, case.dtype) in alike] + timed

    def _decide(self) -> None:
        """Save the decision of each key with all results; a wrong kernel is rejected for all sizes."""
        decided: dict[str, bool] = {}
        reasons: dict[str, str] = {}
        for key in dict.fromkeys([*self._wanted, *(approved.load() or Decisions()).quick]):
            if (rejecting := self._rejecting(key)) is not None:
                decided[key], reasons[key] = False, f"{rejecting.label}: {rejecting.rejection}"
            elif (needed := self._cases(key)) and all(n in self._found for n in needed):
                decided[key] = True
        decided = {key: used for key, used in decided.items() if self._decided.get(key) != used}
        if decided:
            approved.add(Decisions(decided, {key: reasons[key] for key in decided if key in reasons}))
            self._decided |= decided
            self._changed = True

    def _rejecting(self, key: str) -> CaseResult | None:
        """A result that rejects a key: its kernel is wrong for any size, or not faster for these."""
        own = {self._found[n] for n in self._cases(key) if n in self._found}
        for result in self._found.values():
            alike = key.startswith(f"{result.op} {result.dtype} ")
            if (alike and not result.is_correct) or (result in own and result.rejection is not None):
                return result
        return None


def _has_room() -> bool:
    """True if the model leaves enough memory for a trial."""
    use = memory_use()
    return use.limit_bytes - use.active_bytes >= ROOM_BYTES
