"""Model download into the cache: plan, check disk space, fetch and link files, update the reference."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from macllm.errors import DoesNotFitError, MacllmError, ModelNotFoundError, NetworkError
from macllm.files import draft, publish, write_text
from macllm.units import bytes_text

from .cache import repo_folder, similar_names, write_plan
from .files import INDEX_NAME, Listing, RepoFile, is_weights, needed_files
from .names import ModelName, cache_folder, is_bundled
from .transfer import Hub
from .waiting import POLL_SECONDS, OnWait, slept

_RATE_SECONDS = 5.0
_EVENT_SECONDS = 0.1


@dataclass(frozen=True)
class DownloadProgress:
    """Download progress: `done_bytes` of `total_bytes` over all files, those already cached included."""

    file: str
    done_bytes: int
    total_bytes: int
    bytes_per_second: float


Progress = Callable[[DownloadProgress], None]


def plan(name: ModelName, on_wait: OnWait = lambda: None) -> tuple[Hub, Listing, list[RepoFile]]:
    """The hub, all files and the needed files for a download of `name`; nothing is written."""
    hub = Hub(name, on_wait)
    try:
        listing = hub.listing()
    except (ModelNotFoundError, NetworkError) as error:
        near = [each for each in similar_names(name.repo) if is_bundled(each) or isinstance(error, ModelNotFoundError)]
        if near:
            verb = "is" if len(near) == 1 else "are"
            remedy = f"did you mean {' or '.join(near)}, which {verb} on this machine? Else {error.remedy}"
            raise type(error)(error.message, cause=error.cause, remedy=remedy) from error
        raise
    index = hub.read(listing.commit, listing.files[INDEX_NAME]) if INDEX_NAME in listing.files else None
    return hub, listing, needed_files(name.repo, listing, index)


def fetch(name: ModelName, progress: Progress | None, on_wait: OnWait = lambda: None, *, weights: bool = True) -> Path:
    """Download `name` into the cache and return its snapshot; cached parts are not fetched again.

    Without `weights` the model stays incomplete in the cache. `on_wait` is called during waits, and ends the download
    by an exception; what was received stays.
    Raises ModelNotFoundError, NetworkError, or DoesNotFitError before the first byte if the disk is too full.
    """
    hub, listing, files = plan(name, on_wait)
    wanted = files if weights else [file for file in files if not is_weights(file.name)]
    return bring(hub, listing, wanted, progress, files)


def bring(
    hub: Hub,
    listing: Listing,
    files: list[RepoFile],
    progress: Progress | None,
    whole: list[RepoFile] | None = None,
) -> Path:
    """Download some files of a listing into the cache and return the snapshot.

    It is complete with the files `whole`, by default with these. Raises: as `fetch`.
    """
    name, folder = hub.name, repo_folder(hub.name.repo, hub.name.kind)
    is_new = not folder.exists()
    try:
        with _disk_errors(name):
            return _bring(hub, listing, files, whole or files, progress)
    except MacllmError:
        # A refused download must not leave an empty folder, which would be listed as incomplete.
        if is_new and not any(path.stat().st_size for path in folder.glob("blobs/*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def missing_bytes(name: ModelName, listing: Listing, files: list[RepoFile]) -> dict[str, int]:
    """Digest -> bytes of that file still to be fetched; complete files are left out."""
    folder = repo_folder(name.repo, name.kind)
    missing = [file for file in files if not is_complete(folder / "snapshots" / listing.commit, file)]
    return {file.digest: file.size_bytes - _cached_bytes(folder, file) for file in missing}


def _bring(hub: Hub, listing: Listing, files: list[RepoFile], whole: list[RepoFile], progress: Progress | None) -> Path:
    name, folder = hub.name, repo_folder(hub.name.repo, hub.name.kind)
    snapshot = folder / "snapshots" / listing.commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    missing = missing_bytes(name, listing, files)
    _check_disk(name, sum(missing.values()))
    write_plan(name, listing.commit, whole)
    meter = _Meter(files, missing, progress)
    asked = hub.on_wait

    def on_wait() -> None:
        asked()
        meter.add(0)  # the rate falls while nothing comes

    hub.on_wait = on_wait
    for file in files:
        meter.start(file)
        if not is_complete(snapshot, file):
            _link(_fetch_blob(hub, listing.commit, file, meter), snapshot / file.name)
        meter.finish()
    if name.revision != listing.commit:
        ref = folder / "refs" / name.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_text(ref, listing.commit)
    return snapshot


def is_complete(snapshot: Path, file: RepoFile) -> bool:
    """True for a file of a snapshot that is there in its full size."""
    path = snapshot / file.name
    return path.is_file() and path.stat().st_size == file.size_bytes


def _cached_bytes(folder: Path, file: RepoFile) -> int:
    """Bytes of a file already in the cache."""
    for path in (folder / "blobs" / file.digest, folder / "blobs" / f"{file.digest}.incomplete"):
        if path.is_file():
            return min(path.stat().st_size, file.size_bytes)
    return 0


def _fetch_blob(hub: Hub, commit: str, file: RepoFile, meter: _Meter) -> Path:
    folder = repo_folder(hub.name.repo, hub.name.kind)
    blob = folder / "blobs" / file.digest
    partial = blob.with_name(f"{file.digest}.incomplete")
    with _locked(cache_folder() / ".locks" / folder.name / f"{file.digest}.lock", hub.on_wait):
        if not (blob.is_file() and blob.stat().st_size == file.size_bytes):
            hub.fetch(commit, file, partial, meter.add)
            publish(partial, blob)
    return blob


def _link(blob: Path, path: Path) -> None:
    """Make `path` a link to the blob; on a file system without links, move the blob there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as temp:
        try:
            temp.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            publish(blob, path)
        else:
            publish(temp, path)


@contextmanager
def _locked(path: Path, on_wait: OnWait) -> Generator[None]:
    """A lock between processes, shared with huggingface_hub; the system releases it if the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process fetches this file
                slept(POLL_SECONDS, on_wait)
                continue
            break
        yield


def _check_disk(name: ModelName, missing_bytes: int) -> None:
    free_bytes = shutil.disk_usage(cache_folder()).free
    if missing_bytes > free_bytes:
        raise DoesNotFitError(
            f"{name} does not fit on the disk",
            cause=f"it needs {bytes_text(missing_bytes)} more; {bytes_text(free_bytes)} are free at {cache_folder()}",
            remedy="free some space (`macllm models rm NAME`), or set HF_HUB_CACHE to a folder on a larger disk",
        )


@contextmanager
def _disk_errors(name: ModelName) -> Generator[None]:
    try:
        yield
    except ConnectionError:
        raise  # raised by the progress callback
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DoesNotFitError(
                f"the disk is full; {name} is incomplete",
                cause=f"{error.strerror} at {cache_folder()}",
                remedy=f"free some space, then {name.again}, which resumes the download",
            ) from error
        raise MacllmError(
            f"{name} cannot be written to the cache",
            cause=str(error),
            remedy=f"check {cache_folder()} and its permissions, or set HF_HUB_CACHE to another folder",
        ) from error


class _Meter:
    """Counts bytes and reports progress, at most ten times a second and at the ends of each file."""

    def __init__(self, files: list[RepoFile], missing: dict[str, int], on_progress: Progress | None) -> None:
        self.total_bytes = sum({file.digest: file.size_bytes for file in files}.values())
        self.done_bytes = self.total_bytes - sum(missing.values())
        self._missing = dict(missing)
        self._on_progress = on_progress
        self._file = ""
        self._target_bytes = 0
        self._reported_at = 0.0
        self._received: deque[tuple[float, int]] = deque()

    def start(self, file: RepoFile) -> None:
        self._file = file.name
        self._target_bytes = self.done_bytes + self._missing.pop(file.digest, 0)
        self._report(time.monotonic())

    def add(self, size_bytes: int) -> None:
        now = time.monotonic()
        self.done_bytes += size_bytes
        if size_bytes > 0:
            self._received.append((now, size_bytes))
        if now - self._reported_at >= _EVENT_SECONDS:
            self._report(now)

    def finish(self) -> None:
        self.done_bytes = self._target_bytes  # another process may have fetched it meanwhile
        self._report(time.monotonic())

    def _report(self, now: float) -> None:
        self._reported_at = now
        while self._received and now - self._received[0][0] > _RATE_SECONDS:
            self._received.popleft()
        if self._on_progress is not None:
            span = now - self._received[0][0] if self._received else 0.0
            rate = sum(size for _, size in self._received) / span if span > 0 else 0.0
            self._on_progress(DownloadProgress(self._file, self.done_bytes, self.total_bytes, rate))
