"""Child process that compiles the kernels; its compilers end with it, finished files are kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from macllm.child import Parent
from macllm.files import publish

from .build import (
    ANOTHER_FOLDER,
    COMPILE_SECONDS,
    BuildError,
    Object,
    compiler,
    failure,
    link_arguments,
    objects,
    seal,
    whole,
)
from .machine import physical_cores

LOOK_SECONDS = 0.02
END_SECONDS = 0.5
LOW_PRIORITY = 10  # a tenth of a busy core; at the lowest priority, compiling would not finish on a busy machine
KEPT_OBJECTS = 3  # per source: for other environments and the previous version


@dataclass(frozen=True)
class Steps:
    """Message to the parent: number of files done, of all files of the module."""

    done: int
    total: int


@dataclass(frozen=True)
class Failed:
    """Message to the parent: the compilation failed, with the reason."""

    error: BuildError


@dataclass(frozen=True)
class Made:
    """Message to the parent: the module is compiled."""


class _EndedError(Exception):
    """The parent has cancelled the compilation, or ended."""


def compile_kernels(parent: Parent, target: Path, folder: Path, beside: bool) -> None:
    """Compile the missing files of the module `target`, at low priority if `beside`.

    Unfinished files are in `folder`, which is created and removed.
    """
    if beside:
        os.nice(LOW_PRIORITY)
    ended = threading.Event()
    threading.Thread(target=_listen, args=(parent, ended), name="parent", daemon=True).start()

    def on_progress(done: int, total: int) -> None:
        if ended.is_set():
            raise _EndedError
        if (done, total) != sent[-1]:
            sent.append((done, total))
            parent.send(Steps(done, total))

    sent = [(-1, -1)]
    try:
        with _locked(target.parent / "lock", lambda: on_progress(0, 0)):
            if not whole(target):
                _make(target, folder, on_progress)
    except _EndedError:
        return
    except BuildError as error:
        parent.send(Failed(error))
    except OSError as error:
        why = f"cannot write {error.filename or target.parent}: {error.strerror}"
        parent.send(Failed(BuildError(why, ANOTHER_FOLDER)))
    else:
        parent.send(Made())


def _listen(parent: Parent, ended: threading.Event) -> None:
    with suppress(EOFError):
        while True:
            parent.receive()
    ended.set()


@contextmanager
def _locked(path: Path, on_progress: Callable[[], object]) -> Iterator[None]:
    """Lock for one process at a time; the system releases it when the process ends."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_progress()
                time.sleep(LOOK_SECONDS)
        yield


def _make(target: Path, folder: Path, on_progress: Callable[[int, int], object]) -> None:
    """Compile the missing object files, and link all."""
    for left in target.parent.glob("tmp*"):  # of a killed process, since this one holds the lock
        shutil.rmtree(left, ignore_errors=True)
    parts = objects()
    parts[0].path.parent.mkdir(exist_ok=True)
    folder.mkdir()
    try:
        kept = sum(whole(part.path) for part in parts)
        try:
            _make_from(parts, target, folder, on_progress)
        except BuildError:
            if not kept:
                raise
            for part in parts:  # an object file from the cache may be damaged
                part.path.unlink(missing_ok=True)
            _make_from(parts, target, folder, on_progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for part in parts:
        _forget_old(part.path)


def _make_from(parts: list[Object], target: Path, folder: Path, on_progress: Callable[[int, int], object]) -> None:
    missing = {part.path: list(part.arguments) for part in parts if not whole(part.path)}
    kept, total = len(parts) - len(missing), len(parts) + 1
    _run_all(missing, folder, lambda done: on_progress(kept + done, total))
    _run_all({target: link_arguments(parts)}, folder, lambda done: on_progress(len(parts) + done, total))


def _forget_old(path: Path) -> None:
    """Remove the oldest object files of a source."""
    stem = path.name.rpartition("-")[0]
    found = sorted(path.parent.glob(f"{stem}-*.o"), key=lambda each: each.stat().st_mtime, reverse=True)
    for old in found[KEPT_OBJECTS:]:
        if old != path:
            old.unlink(missing_ok=True)


def _run_all(
    arguments: Mapping[Path, list[str]],
    folder: Path,
    on_progress: Callable[[int], object],
) -> None:
    """Compile each file with its arguments, one compiler per core. No compiler outlives this call.

    A file is made in `folder`, sealed with a hash, and moved to its path.
    """
    waiting, running = list(arguments), list[_Compiler]()
    end = time.monotonic() + COMPILE_SECONDS
    try:
        while waiting or running:
            while waiting and len(running) < physical_cores():
                path = waiting.pop(0)
                running.append(_Compiler(arguments[path], path, folder))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                if (output := one.end()) is not None:
                    raise failure(output)
                seal(one.made)
                publish(one.made, one.path)
            if time.monotonic() > end:
                raise BuildError(f"the compiler took more than {COMPILE_SECONDS} s")
            on_progress(len(arguments) - len(waiting) - len(running))
            time.sleep(LOOK_SECONDS)
    finally:
        if running:
            _end(running)


def _end(running: list[_Compiler]) -> None:
    """End the compilers, each of which is several processes, by ending this process's group."""
    assert os.getpgrp() == os.getpid(), "the compiling process must lead a process group"
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for one in running:
        one.end()
    signal.signal(signal.SIGTERM, before)


class _Compiler:
    """A running compiler, with its temporary files in `folder`."""

    def __init__(self, arguments: list[str], path: Path, folder: Path) -> None:
        self.path, self.made = path, folder / path.name
        self._log = open(os.memfd_create("compiler"), "w+b")  # noqa: PTH123, SIM115  # the disk may be full
        self.process = subprocess.Popen(
            [compiler(), *arguments, "-o", str(self.made)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
        )

    def end(self) -> str | None:
        """Wait briefly for the compiler to exit, then kill it; returns its output if it failed."""
        with self._log:
            try:
                failed = self.process.wait(END_SECONDS) != 0
            except subprocess.TimeoutExpired:
                self.process.kill()
                failed = self.process.wait() != 0
            self._log.seek(0)
            return self._log.read().decode(errors="replace") if failed else None
