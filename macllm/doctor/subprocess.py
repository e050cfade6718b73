"""Trials of kernels in a process of their own: a kernel that brings its process down is a finding, not the end."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .benchmark import Verdict
    from .case import Case

WAIT_SECONDS = 300.0
"""What a case may take."""

Worker = Callable[[Connection, str, list[int]], None]
"""Sends a verdict for each of these cases, in order; what it says besides goes into a file."""


def try_cases(talk: Connection, log: str, numbers: list[int]) -> None:
    """What the process does: the cases of these numbers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    import mlx.core as mx

    from .benchmark import tried
    from .cases import cases

    known = list(cases())
    clock = None if is_validated() else time.perf_counter
    for number in numbers:
        talk.send(tried(known[number], clock))
        mx.clear_cache()


def is_validated() -> bool:
    """Whether Metal checks all that kernels do: each access to memory, or each call. Times mean nothing then."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("MTL_SHADER_VALIDATION", "MTL_DEBUG_LAYER"))


def trials(
    known: list[Case], worker: Worker, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Verdict]:
    """A verdict of each case. Of an op whose kernels bring a process down, or never end, the rest is left out.

    `progress` gets the cases done and the cases in all.
    """
    left, found = list(range(len(known))), dict[int, "Verdict"]()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        while left:
            log.write_text("")
            for verdict in _verdicts(worker, str(log), left, lambda left: progress(len(known) - left, len(known))):
                found[left.pop(0)] = verdict
            if left:
                failed = known[left.pop(0)]
                found[known.index(failed)] = _crashed(failed, log)
                left = [i for i in left if (known[i].op, known[i].dtype) != (failed.op, failed.dtype)]
    return [found[i] for i in sorted(found)]


def _verdicts(worker: Worker, log: str, left: list[int], remaining: Callable[[int], None]) -> Iterator[Verdict]:
    """What a process sends until it ends, well or not."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(theirs, log, list(left)), daemon=True)
    process.start()
    theirs.close()
    try:
        while left:
            remaining(len(left))
            if not ours.poll(WAIT_SECONDS):
                Path(log).write_text(f"it did not end in {WAIT_SECONDS:.0f} s")
                return
            yield ours.recv()
    except EOFError:
        return
    finally:
        process.kill()
        process.join()
        ours.close()


def _crashed(case: Case, log: Path) -> Verdict:
    from .benchmark import Verdict

    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    dtype = str(case.dtype).removeprefix("mlx.core.")
    why = f"its process crashed{f': {lines[-1][:300]}' if lines else ''}"
    return Verdict(case.op, case.label, dtype, case.bucket, case.timed, error=why)
