"""Names in a run's folder, and the locks of the processes that work in it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from macllm.errors import UsageError

from ..events import TrainEvent, record

METRICS, SNAPSHOTS, ENVIRONMENT = "metrics.jsonl", "snapshots", "environment.json"
TRAINING, SUPERVISING = ".lock", ".supervisor"  # each has the number of the process that holds it
# A reader holds a lock for a moment, and a killed process for as long as it takes to end.
_PATIENCE_SECONDS, _POLL_SECONDS = 2.0, 0.05
_MOST_DIGITS = 20


@contextmanager
def lock(folder: Path, name: str = TRAINING) -> Generator[None]:
    """Hold the folder, made if it is missing, and write the number of this process into the file `name`.

    Raises UsageError if another process holds it, or if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            f"cannot write to the folder {folder}", cause=str(error), remedy="another folder for the run"
        ) from error
    try:
        _acquire(descriptor, folder)
        with suppress(OSError):  # a full disk: the lock holds without a number in it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def holder(folder: Path) -> int | None:
    """The process that trains in a folder, else its supervisor; None without any, 0 if not known."""
    for name in (TRAINING, SUPERVISING):
        if (number := _holder(folder / name)) is not None:
            return number
    return None


def append(folder: Path, event: TrainEvent) -> None:
    """Write an event into metrics.jsonl, after the end of a line that was cut off. Raises: OSError."""
    with (folder / METRICS).open("a+b") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(record(event), allow_nan=False).encode() + b"\n")


def _acquire(descriptor: int, folder: Path) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UsageError(
                    f"another process is training in {folder}",
                    remedy=f"wait for it, macllm runs stop {folder}, or use another folder",
                ) from error
        time.sleep(_POLL_SECONDS)


def _holder(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text = os.read(descriptor, _MOST_DIGITS)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
