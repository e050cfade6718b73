"""The parent's handle of a compilation of the kernels in a child process."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from macllm.child import ChildProcess, Exit

from .build import ANOTHER_FOLDER, BuildError, library, objects, whole
from .compilers import LOOK_SECONDS, Failed, Steps

log = logging.getLogger(__name__)

END_SECONDS = 0.5
NOTIFY_SECONDS = 0.5

Progress = Callable[[int, int], object]
"""Callback (steps done, steps in all), many times a second; an exception from it ends the compilation."""


class Compilation:
    """A compilation in progress. Finished object files stay in the cache, however it ends."""

    def __init__(
        self, on_progress: Callable[[Compilation], object] = lambda compilation: None, *, beside: bool
    ) -> None:
        """Start the child process; `beside` means in the background, at low priority.

        `on_progress` is called now and, from a thread, at each step and at the end. Raises BuildError.
        """
        self.target = library()
        parts = objects()
        self.done, self.total = sum(whole(part.path) for part in parts), len(parts) + 1
        self.beside = beside
        self.error: BuildError | None = None
        self.ended = False  # True if cancelled by `end`
        self.over = threading.Event()
        self._on_progress = on_progress
        self._folder = self.target.parent / f"tmp{os.urandom(4).hex()}"
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with (self.target.parent / "lock").open("a"):
                pass
            self._process = ChildProcess(
                "macllm.ops.cpu.compilers:compile_kernels",
                self.target,
                self._folder,
                beside,
                on_message=self._receive,
                on_exit=self._finish,
                log_prefix="kernels",
            )
        except OSError as error:
            raise BuildError(
                f"cannot write {error.filename or self.target.parent}: {error.strerror}", ANOTHER_FOLDER
            ) from error
        on_progress(self)

    def wait(self, progress: Progress | None = None) -> None:
        """Wait for the end. What `progress` raises ends the compilation."""
        notified = time.monotonic()
        try:
            while not self.over.wait(LOOK_SECONDS):
                if progress:
                    progress(self.done, self.total)
                elif time.monotonic() - notified > NOTIFY_SECONDS:  # so that a watcher shows the wait
                    notified = time.monotonic()
                    self._on_progress(self)
        except BaseException:
            self.end()
            raise

    def result(self) -> Path:
        """The module, once it is over. Raises: BuildError."""
        if self.error:
            raise self.error
        return self.target

    def end(self) -> None:
        """Cancel the compilation: compilers stop, unfinished files are removed."""
        self._process.end(END_SECONDS)

    def _receive(self, message: object) -> None:
        if isinstance(message, Failed):
            self.error = message.error
        if isinstance(message, Steps) and message.total:
            self.done, self.total = message.done, message.total
            self._on_progress(self)

    def _finish(self, exit: Exit) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.error is None and not whole(self.target):
            self.ended = exit.requested
            self.error = BuildError(
                "the compilation was ended" if exit.requested else f"compiling crashed: {exit.cause}"
            )
        self.over.set()
        self._on_progress(self)


def ensure(progress: Progress | None = None) -> Path:
    """Path of the module, compiled now if missing; safe across processes. Raises: BuildError."""
    target = library()
    if not whole(target):
        log.info("compiling the CPU kernels for this machine, once")
        compilation = Compilation(beside=False)
        compilation.wait(progress)
        return compilation.result()
    return target
