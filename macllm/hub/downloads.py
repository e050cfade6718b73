"""Downloads in threads, which can be paused, resumed and cancelled; each change is an event."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from macllm.errors import MacllmError

from .cache import discard
from .names import parse_name
from .snapshot import DownloadProgress

DownloadState = Literal["running", "pausing", "paused", "cancelling", "cancelled", "failed", "done"]
_MOVING = ("running", "pausing", "cancelling")


@dataclass(frozen=True)
class DownloadStatus:
    """State of one download. A paused or failed one keeps its bytes and can be resumed.

    `seconds_left` is None while the rate is unknown. `folder` is set at the end, `error` after a failure.
    """

    name: str
    state: DownloadState
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: float = 0.0
    error: MacllmError | None = None
    folder: Path | None = None

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at the current rate."""
        if self.state != "running" or self.bytes_per_second <= 0:
            return None
        return max(self.total_bytes - self.done_bytes, 0) / self.bytes_per_second

    @property
    def is_moving(self) -> bool:
        """True while a thread works on it."""
        return self.state in _MOVING


class _StoppedError(Exception):
    """Ends a download at the user's wish."""


class Downloads:
    """All downloads of a process, by model name. Every method returns at once; any thread may call it.

    `on_status` gets each change, in the thread of the download or of the caller.
    """

    def __init__(self, on_status: Callable[[DownloadStatus], object] = lambda status: None) -> None:
        self.on_status = on_status
        self._statuses: dict[str, DownloadStatus] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._lock = threading.RLock()

    def statuses(self) -> list[DownloadStatus]:
        """The newest status of each download of this process, in the order in which they began."""
        with self._lock:
            return list(self._statuses.values())

    def status(self, name: str) -> DownloadStatus | None:
        """The newest status of one download."""
        return self._statuses.get(name)

    def start(self, name: str) -> None:
        """Begin or resume the download of "org/name" or "org/name@revision".

        Raises: UsageError for another form of name.
        """
        parse_name(name)
        with self._lock:
            status = self._statuses.get(name)
            if status is not None and status.is_moving:
                if status.state == "pausing":  # the thread has not noticed yet, and goes on
                    self._tell(replace(status, state="running"))
                return
            done, total = (status.done_bytes, status.total_bytes) if status else (0, 0)
            self._tell(DownloadStatus(name, "running", done, total))
            self._threads[name] = threading.Thread(target=self._run, args=(name,), name="macllm-download", daemon=True)
            self._threads[name].start()

    def pause(self, name: str) -> None:
        """Stop after the current chunk and keep what is there; `start` resumes it."""
        with self._lock:
            status = self._statuses.get(name)
            if status is not None and status.state == "running":
                self._tell(replace(status, state="pausing"))

    def cancel(self, name: str) -> None:
        """Stop, and delete the unfinished files; a complete older revision stays."""
        with self._lock:
            status = self._statuses.get(name)
            if status is None or status.state in ("cancelling", "cancelled", "done"):
                return
            self._tell(replace(status, state="cancelling"))
            if not status.is_moving:
                self._threads[name] = threading.Thread(target=self._discard, args=(name,), daemon=True)
                self._threads[name].start()

    def close(self, wait_seconds: float = 0.0) -> None:
        """Pause all downloads; wait for their threads at most that long each."""
        for status in self.statuses():
            self.pause(status.name)
        for thread in list(self._threads.values()):
            thread.join(wait_seconds)

    def _run(self, name: str) -> None:
        from . import download

        try:
            folder = download(
                name,
                progress=lambda progress: self._move(name, progress),
                on_wait=lambda: self._check(name),
            )
        except _StoppedError:
            self._stopped(name)
        except MacllmError as error:
            self._failed(name, error)
        except Exception as error:
            self._failed(name, MacllmError(f"the download of {name} failed", cause=repr(error), remedy="try again"))
        else:
            with self._lock:
                status = self._statuses[name]
                if status.state != "cancelling":  # a wish to pause came too late
                    self._tell(replace(status, state="done", done_bytes=status.total_bytes, folder=folder))
                    return
            self._discard(name)

    def _check(self, name: str) -> None:
        """End the download if the user wishes so."""
        if self._statuses[name].state != "running":
            raise _StoppedError

    def _move(self, name: str, progress: DownloadProgress) -> None:
        with self._lock:
            self._check(name)
            self._tell(
                DownloadStatus(name, "running", progress.done_bytes, progress.total_bytes, progress.bytes_per_second)
            )

    def _stopped(self, name: str) -> None:
        with self._lock:
            status = self._statuses[name]
            if status.state == "pausing":
                self._tell(replace(status, state="paused", bytes_per_second=0.0))
                return
            wanted_again = status.state == "running"
        if wanted_again:  # resumed between the stop and this line
            self._run(name)
        else:
            self._discard(name)

    def _failed(self, name: str, error: MacllmError) -> None:
        with self._lock:
            status = self._statuses[name]
            if status.state != "cancelling":
                self._tell(replace(status, state="failed", bytes_per_second=0.0, error=error))
                return
        self._discard(name)

    def _discard(self, name: str) -> None:
        discard(parse_name(name))
        with self._lock:
            self._tell(DownloadStatus(name, "cancelled"))

    def _tell(self, status: DownloadStatus) -> None:
        self._statuses[status.name] = status
        self.on_status(status)
