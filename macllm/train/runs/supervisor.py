"""Supervision of a run: it works in a child process, which is started again after an abort.

A GPU watchdog, a full memory or a bug in a driver ends a process without an exception. The next child goes on from the
newest snapshot, so that the run ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from macllm.child import ChildProcess, Exit
from macllm.errors import EngineCrashedError

from ..config import SETTINGS_NAME, TrainConfig
from ..events import Prepared, Restarted, TrainEvent
from .folder import SNAPSHOTS, SUPERVISING, append, lock
from .worker import Completed, Interrupted, Raised

_GRACE_SECONDS = 60.0  # for the current step, a snapshot and the export
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ADVICE = "a smaller --batch-size with more --grad-accumulation-steps, or --grad-checkpoint"
# An error of Metal that MLX reports as an exception: the watchdog, or memory that other programs took.
_GPU_ABORT = "Command buffer execution failed"
_TARGET = "macllm.train.runs.worker:train"


def supervised(work: str, config: TrainConfig, restarts: int) -> Generator[TrainEvent]:
    """The events of `work`, a "module:function" that takes the config, in a child process.

    After an abort the child is started again, at most `restarts` times without a new snapshot in between. Closing the
    generator saves and ends the run.
    Raises: the errors of the work; KeyboardInterrupt if the child was asked to stop; EngineCrashedError.
    """
    folder = Path(config.folder)
    is_new = not (folder / SETTINGS_NAME).exists()
    failures, reached, is_held = 0, newest(folder), False
    with ExitStack() as held, _awake():
        while True:
            begun = is_new and (folder / SETTINGS_NAME).exists()
            child = _Worker(work, dataclasses.replace(config, resume=True) if begun else config)
            try:
                for event in child.events():
                    if isinstance(event, Prepared) and not is_held:
                        held.enter_context(lock(folder, SUPERVISING))
                        is_held = True
                    yield event
            finally:
                child.end()
            if child.cause is None:
                return
            step = newest(folder)
            failures, reached = 1 if step > reached else failures + 1, step
            if failures > restarts:
                raise EngineCrashedError(
                    f"the training process was aborted, {failures} times in a row without a new snapshot",
                    cause=child.cause,
                    remedy=f"{_ADVICE}; --resume continues from step {step}",
                )
            yield _restarted(folder, Restarted(step, child.cause, failures, restarts))


def newest(folder: Path) -> int:
    """The step of a run's newest snapshot, whole or not; 0 without any."""
    names = (path.name.removeprefix("step-") for path in (folder / SNAPSHOTS).glob("step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


class _Worker:
    """A child process that trains."""

    def __init__(self, work: str, config: TrainConfig) -> None:
        self.cause: str | None = None  # of an abort, once `events` have ended
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        put = self._messages.put
        self._process = ChildProcess(_TARGET, work, config, on_message=put, on_exit=put, log_prefix="train")

    def events(self) -> Iterator[TrainEvent]:
        """The events until the work is done or aborted. Raises: its errors; KeyboardInterrupt."""
        while True:
            match self._messages.get():
                case Completed():
                    return
                case Interrupted():
                    raise KeyboardInterrupt
                case Raised(RuntimeError() as error) if _GPU_ABORT in str(error):
                    self.cause = str(error)
                    return
                case Raised(error):
                    raise error
                case Exit() as end if -end.code in _STOPS:
                    raise KeyboardInterrupt
                case Exit() as end if end.code < 0:
                    self.cause = end.cause
                    return
                case Exit() as end:
                    raise EngineCrashedError("the training process ended by itself", cause=end.cause)
                case event:
                    yield event

    def end(self) -> None:
        """Let the child save and end, and kill it after a minute or at a second interruption."""
        try:
            self._process.end(_GRACE_SECONDS)
        except KeyboardInterrupt:
            self._process.end(0)
            raise


def _restarted(folder: Path, event: Restarted) -> Restarted:
    """Note a restart in the metrics of a run that has any."""
    if (folder / SETTINGS_NAME).exists():
        with suppress(OSError):
            append(folder, event)
    return event


@contextmanager
def _awake() -> Iterator[None]:
    """Keep a Mac awake as long as this process lives."""
    command = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if command is None:
        yield
        return
    with suppress(OSError):
        subprocess.Popen([command, "-i", "-w", str(os.getpid())], stdin=subprocess.DEVNULL, start_new_session=True)
    yield
