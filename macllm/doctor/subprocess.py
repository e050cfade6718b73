"""Kernel trials in a child process, so that a crash is a result and not the end."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from macllm.child import ChildProcess, Exit, Parent
from macllm.units import duration_text

if TYPE_CHECKING:
    from .benchmark import CaseResult, Effort
    from .case import Case

TARGET = "macllm.doctor.subprocess:try_cases"
WAIT_SECONDS = 300.0
"""Time that a case may take."""


def try_cases(parent: Parent, numbers: Sequence[int], effort: Effort) -> None:
    """Try the cases of these numbers, in the child, and send a verdict for each, in order."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    import mlx.core as mx

    from .benchmark import run_case
    from .cases import cases

    known = list(cases())
    clock = None if is_validated() else time.perf_counter
    for number in numbers:
        parent.send(run_case(known[number], clock, effort))
        mx.clear_cache()


def _end_with(parent: Parent) -> None:
    """End this process when the parent wants that, or ends itself, even in the middle of a kernel."""
    with suppress(EOFError):
        parent.receive()
    parent.leave()


def is_validated() -> bool:
    """Metal checks all that kernels do: each access to memory, or each call. Times mean nothing then."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("MTL_SHADER_VALIDATION", "MTL_DEBUG_LAYER"))


class TrialProcess:
    """A child process that tries cases, as its parent sees it."""

    def __init__(self, numbers: Sequence[int], effort: Effort) -> None:
        """Begin with the first. Raises: OSError where no process can be started."""
        self._arrived: queue.SimpleQueue[CaseResult | Exit | None] = queue.SimpleQueue()
        self._child = ChildProcess(
            TARGET,
            list(numbers),
            effort,
            on_message=self._arrived.put,
            on_exit=self._arrived.put,
            log_prefix="trial",
        )

    def next(self, timeout_seconds: float) -> CaseResult | Exit | None:
        """Wait for the next verdict. The end of the process comes in its place; None where the time is over."""
        with suppress(queue.Empty):
            return self._arrived.get(timeout=max(timeout_seconds, 0.0))
        return None

    def interrupt(self) -> None:
        """Let `next` return None at once, in whatever thread it waits."""
        self._arrived.put(None)

    def end(self) -> None:
        """End the process now, whatever it does."""
        self._child.end(grace_seconds=0.0)


def trials(
    known: Sequence[Case], effort: Effort, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[CaseResult]:
    """A result of each case; after a crash or timeout the op's other cases are skipped.

    `progress` gets the cases done and the cases in all.
    """
    left, found = list(range(len(known))), dict[int, "CaseResult"]()
    while left:
        process = TrialProcess(left, effort)
        try:
            came = None
            while left:
                progress(len(known) - len(left), len(known))
                came = process.next(WAIT_SECONDS)
                if came is None or isinstance(came, Exit):
                    break
                found[left.pop(0)] = came
        finally:
            process.end()
        if left:
            number = left.pop(0)
            failed = known[number]
            found[number] = crashed(failed, came, WAIT_SECONDS)
            left = [i for i in left if (known[i].op, known[i].dtype) != (failed.op, failed.dtype)]
    return [found[i] for i in sorted(found)]


def crashed(case: Case, exit: object, waited_seconds: float) -> CaseResult:
    """The verdict of a case that its process did not survive, or (no `exit`) that did not end in time."""
    from .benchmark import CaseResult

    why = f"it did not end in {duration_text(waited_seconds)}"
    if isinstance(exit, Exit):
        log = exit.log.read_text(errors="replace") if exit.log and exit.log.exists() else ""
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        why = f"its process crashed{f': {lines[-1][:300]}' if lines else ''}"
    dtype = str(case.dtype).removeprefix("mlx.core.")
    return CaseResult(case.op, case.label, dtype, case.bucket, case.timed, error=why)
