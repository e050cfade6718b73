"""Supervision of a run: it works in a child process, which is started again after an abort.

A GPU watchdog, a full memory or a bug in a driver ends a process without an exception. The next child goes on from the
newest snapshot, so that the run ends with the bytes of an undisturbed one. After a full memory it has smaller
micro-batches of the same rows.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from macllm.child import ChildProcess, Exit
from macllm.errors import DoesNotFitError, EngineCrashedError, MacllmError

from ..config import SETTINGS_NAME, TrainConfig
from ..events import Advanced, Prepared, Restarted, RunFailed, TrainEvent, Working
from . import full_memory
from .folder import SUPERVISING, append, lock, newest_step
from .registry import command_of
from .worker import Completed, Interrupted, Raised

_GRACE_SECONDS = 60.0  # for the current step, a snapshot and the export
_QUIET_SECONDS = 60.0  # between two signs of a child that reports nothing
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# An error of Metal that MLX reports as an exception: the watchdog, or memory that other programs took.
_GPU_ABORT = "Command buffer execution failed"
_TARGET = "macllm.train.runs.worker:train"


def supervised(work: str, config: TrainConfig, restarts: int) -> Generator[TrainEvent]:
    """The events of `work`, a "module:function" that takes the config, in a child process.

    After an abort the child is started again, at most `restarts` times without a new snapshot in between. If memory was
    full, that does not count, and the settings are those of `full_memory.reduced` from then on. Closing the generator
    saves and ends the run. The folder is held all the time, also while a model is loaded.
    Raises: the errors of the work; KeyboardInterrupt if the child was asked to stop; EngineCrashedError;
    DoesNotFitError if memory was refused with the smallest settings.
    """
    folder = Path(config.folder)
    is_new = not (folder / SETTINGS_NAME).exists()
    failures, reached = 0, newest_step(folder)
    with lock(folder, SUPERVISING), _awake():
        while True:
            begun = is_new and (folder / SETTINGS_NAME).exists()
            child = _Worker(work, dataclasses.replace(config, resume=True) if begun else config)
            try:
                with child.stopped_together():
                    yield from child.events()
            except (GeneratorExit, KeyboardInterrupt):
                child.end()
                if (error := child.error) is not None:
                    raise error from None
                raise
            finally:
                child.end()
            if child.cause is None:
                return
            step = newest_step(folder)
            failures, reached = 1 if step > reached else failures + 1, step
            if changed := full_memory.reduced(config, child.recomputes) if child.is_full else {}:
                failures = 0
                config = dataclasses.replace(config, **{name: now for name, (_, now) in changed.items()})
            elif child.is_refused or failures > restarts:
                error = _given_up(child, failures, advice(config, step))
                _note(folder, RunFailed(step, error.message, error.cause))
                raise error
            restarted = Restarted(step, child.cause, failures, restarts, changed)
            _note(folder, restarted)
            yield restarted


def _given_up(child: _Worker, failures: int, remedy: str) -> MacllmError:
    if child.is_refused:
        return DoesNotFitError("the run does not fit into memory", cause=child.cause, remedy=remedy)
    often = f"{failures} times in a row without a new snapshot"
    return EngineCrashedError(f"the training process was aborted, {often}", cause=child.cause, remedy=remedy)


def advice(config: TrainConfig, step: int) -> str:
    """Commands with which a run goes on from this step in less memory."""
    folder = shlex.quote(config.folder)
    resume = f"macllm {command_of(config.as_dict())} --resume --{config._folder.replace('_', '-')} {folder}"
    rows = config.batch_size * config.grad_accumulation_steps  # of a step, which stay
    half = full_memory.half_batch(config)
    if ways := [
        *([] if config.grad_checkpoint else [f"{resume} --grad-checkpoint"]),
        *([f"{resume} --batch-size {half} --grad-accumulation-steps {rows // half}"] if half else []),
    ]:
        return ", or ".join(ways)
    shorter = (
        f"macllm runs fork {folder} --output FOLDER --set max_seq_length=N" if step else f"{resume} --max-seq-length N"
    )
    return f"{shorter} with a smaller N"


class _Worker:
    """A child process that trains."""

    def __init__(self, work: str, config: TrainConfig) -> None:
        self._folder = config.folder
        self.cause: str | None = None  # of an abort, once `events` have ended
        self.is_full = self.is_refused = False  # the cause is memory; an allocation that would be refused again
        self.recomputes = self._is_begun = False
        self._peak_bytes = 0
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        put = self._messages.put
        self._process = ChildProcess(_TARGET, work, config, on_message=put, on_exit=put, log_prefix="train")

    def events(self) -> Iterator[TrainEvent]:
        """The events until the work is done or aborted. Raises: its errors; KeyboardInterrupt."""
        quiet = 0.0
        while True:
            try:
                message = self._messages.get(timeout=_QUIET_SECONDS)
            except queue.Empty:
                yield Working(quiet := quiet + _QUIET_SECONDS)
                continue
            quiet = 0.0
            match message:
                case Completed():
                    return
                case Interrupted():
                    raise KeyboardInterrupt
                case Raised(error) if self._is_begun and (cause := full_memory.refused(error)):
                    self.cause, self.is_full, self.is_refused = cause, True, _GPU_ABORT not in cause
                    return
                case Raised(RuntimeError() as error) if _GPU_ABORT in str(error):
                    self.cause = str(error)
                    return
                case Raised(error):
                    raise error
                case Exit() as end if -end.code in _STOPS:
                    raise KeyboardInterrupt
                case Exit() as end if end.code < 0:
                    cause = full_memory.seen(end, self._peak_bytes) if self._is_begun else None
                    self.cause, self.is_full = cause or end.cause, cause is not None
                    return
                case Exit() as end:
                    raise EngineCrashedError("the training process ended by itself", cause=end.cause)
                case event:
                    self._take(event)
                    yield event

    def _take(self, event: TrainEvent) -> None:
        if isinstance(event, Prepared):  # before, the memory has nothing to do with micro-batches
            self._is_begun, self.recomputes = True, event.recomputes
        elif isinstance(event, Advanced):
            self._peak_bytes = max(self._peak_bytes, event.peak_bytes)

    def end(self) -> None:
        """Let the child save and end, and kill it after a minute or at a second Ctrl-C."""
        try:
            with _asked_once():
                self._process.end(_GRACE_SECONDS)
        except KeyboardInterrupt:
            self._process.end(0)
            raise

    @property
    def error(self) -> BaseException | None:
        """The error with which a child that was asked to end could not save; None if it did."""
        while not self._messages.empty():
            match self._messages.get():
                case Raised(error):
                    return error
                case Exit() as end if end.code < 0 and -end.code not in _STOPS:
                    return EngineCrashedError(
                        "the training process ended before it had saved",
                        cause=end.cause,
                        remedy=f"macllm runs resume {shlex.quote(self._folder)}: it continues from the last snapshot",
                    )
                case _:
                    pass
        return None

    @contextmanager
    def stopped_together(self) -> Iterator[None]:
        """Stop the child, which has another process group, with this process at Ctrl-Z, until `fg`."""
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTSTP) if is_main else signal.SIG_IGN
        if before != signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTSTP, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, before)

    def _stop(self, *_signal: object) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns after `fg`
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGCONT)


def _note(folder: Path, event: Restarted | RunFailed) -> None:
    """Write an event into the metrics of a run that has any."""
    if (folder / SETTINGS_NAME).exists():
        with suppress(OSError):
            append(folder, event)


@contextmanager
def _asked_once() -> Iterator[None]:
    """Ignore further requests to stop, but for Ctrl-C, while a run saves."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP) if is_main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
