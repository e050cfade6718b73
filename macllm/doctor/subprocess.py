"""Kernel test cases in a child process, so that a crash is a result and does not end the test."""

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
"""Time limit of a case."""


def try_cases(parent: Parent, numbers: Sequence[int], effort: Effort) -> None:
    """Run the cases of these numbers in the child process, and send a result for each, in order."""
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
    """End this process when the parent requests it or ends, even in the middle of a kernel."""
    with suppress(EOFError):
        parent.receive()
    parent.leave()


def is_validated() -> bool:
    """True if Metal validates kernels (each memory access, or each call), which makes times meaningless."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("MTL_SHADER_VALIDATION", "MTL_DEBUG_LAYER"))


class TrialProcess:
    """The parent's handle of a child process that runs cases."""

    def __init__(self, numbers: Sequence[int], effort: Effort) -> None:
        """Start the process. Raises: OSError if it cannot start."""
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
        """Wait for the next result, or the process's exit; None after a timeout."""
        with suppress(queue.Empty):
            return self._arrived.get(timeout=max(timeout_seconds, 0.0))
        return None

    def interrupt(self) -> None:
        """Make `next` return None at once, from any thread."""
        self._arrived.put(None)

    def end(self) -> None:
        """End the process now, even in the middle of a kernel."""
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
            message = None
            while left:
                progress(len(known) - len(left), len(known))
                message = process.next(WAIT_SECONDS)
                if message is None or isinstance(message, Exit):
                    break
                found[left.pop(0)] = message
        finally:
            process.end()
        if left:
            number = left.pop(0)
            failed = known[number]
            found[number] = crashed(failed, message, WAIT_SECONDS)
            left = [i for i in left if (known[i].op, known[i].dtype) != (failed.op, failed.dtype)]
    return [found[i] for i in sorted(found)]


def crashed(case: Case, exit: object, waited_seconds: float) -> CaseResult:
    """The result of a case whose process ended, or (`exit` is None) that did not end in time."""
    from .benchmark import CaseResult

    why = f"it did not end in {duration_text(waited_seconds)}"
    if isinstance(exit, Exit):
        log = exit.log.read_text(errors="replace") if exit.log and exit.log.exists() else ""
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        why = f"its process crashed{f': {lines[-1][:300]}' if lines else ''}"
    dtype = str(case.dtype).removeprefix("mlx.core.")
    return CaseResult(case.op, case.label, dtype, case.bucket, case.timed, error=why)
