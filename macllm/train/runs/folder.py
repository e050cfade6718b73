"""Names in a run's folder, and the locks of the processes that work in it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from macllm.errors import UsageError

from ..events import TrainEvent, record

METRICS, SNAPSHOTS, ENVIRONMENT = "metrics.jsonl", "snapshots", "environment.json"
TRAINING, SUPERVISING = ".lock", ".supervisor"  # each has the number of the process that holds it
# A reader holds a lock for a moment, and a killed process for as long as it takes to end.
_PATIENCE_SECONDS, _POLL_SECONDS = 2.0, 0.05
_MOST_CHARS = 40


@dataclass(frozen=True)
class Holder:
    """A process that holds a run's folder."""

    pid: int  # 0: not known
    stop: int = 0  # the signal after which it saves and ends; 0: none does


@contextmanager
def lock(folder: Path, name: str = TRAINING) -> Generator[None]:
    """Hold the folder, made if it is missing, and write this process into the file `name`.

    A folder that was made, and has nothing but locks at the end, is removed.
    Raises UsageError if another process holds it, or if it cannot be written or locked.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    descriptor = _acquire(folder, name)
    try:
        if name == TRAINING and (other := holder(folder, SUPERVISING)) and other.pid not in (0, os.getppid()):
            raise _busy(folder, other)
        with suppress(OSError):  # a full disk: the lock holds without a number in it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {_stop_signal()}".encode())
        yield
    finally:
        with suppress(OSError):
            _remove_unused(made, folder / name)
        os.close(descriptor)


def holder(folder: Path, *names: str) -> Holder | None:
    """The process that supervises the training in a folder, or that trains there alone; None without any."""
    for name in names or (SUPERVISING, TRAINING):
        if (found := _holder(folder / name)) is not None:
            return found
    return None


def newest_step(folder: Path) -> int:
    """The step of a run's newest snapshot, whole or not; 0 without any."""
    names = (path.name.removeprefix("step-") for path in (folder / SNAPSHOTS).glob("step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def append(folder: Path, event: TrainEvent) -> None:
    """Write an event into metrics.jsonl, after the end of a line that was cut off. Raises: OSError."""
    with (folder / METRICS).open("a+b") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record(event), allow_nan=False).encode() + b"\n")


def _acquire(folder: Path, name: str) -> int:
    """The descriptor of the locked file."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot write to the folder {folder}", cause=str(error), remedy="another folder for the run"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(descriptor, folder / name):
                return descriptor
            os.close(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            if time.monotonic() > end:
                raise _busy(folder, _holder(folder / name)) from error
        except OSError as error:
            os.close(descriptor)
            raise UsageError(
                f"cannot lock the folder {folder}",
                cause=f"its file system has no locks: {error.strerror}",
                remedy="a folder on a local disk for the run",
            ) from error
        time.sleep(_POLL_SECONDS)


def _busy(folder: Path, other: Holder | None) -> UsageError:
    return UsageError(
        f"another process is training in {folder}",
        cause=f"process {other.pid} holds it" if other and other.pid else None,
        remedy=f"wait for it, macllm runs stop {shlex.quote(str(folder))}, or use another folder",
    )


def _is_there(descriptor: int, path: Path) -> bool:
    """True unless the file was removed by the process that held its lock before."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _remove_unused(made: list[Path], held: Path) -> None:
    """Remove folders that were made for a run that never began. Raises: OSError."""
    folder = held.parent
    if not made or not {each.name for each in folder.iterdir()} <= {TRAINING, SUPERVISING}:
        return
    for path in (folder / TRAINING, folder / SUPERVISING):
        if path == held or _holder(path) is None:
            path.unlink(missing_ok=True)
    for each in made:
        each.rmdir()


def _stop_signal() -> int:
    """The signal that interrupts the training of this thread; 0 without any."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if callable(signal.getsignal(number)):
                return number
    return 0


def _holder(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        numbers = os.read(descriptor, _MOST_CHARS).split()
        return Holder(*map(int, numbers)) if len(numbers) == 2 and all(map(bytes.isdigit, numbers)) else Holder(0)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
