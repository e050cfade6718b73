"""Requests to a hub: listing of a repository, and downloads that resume and are checked.

Only the session (proxies, certificates, redirects that drop the token at other hosts) and the token come from
`huggingface_hub`: its downloads start again from zero in every process, and its headers cost one more request.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from macllm.errors import DataError, ModelNotFoundError, NetworkError
from macllm.files import sync

from .files import Listing, RepoFile, checked_listing
from .names import ModelName, endpoint
from .waiting import OnWait, awaited, slept, streamed

log = logging.getLogger(__name__)


class UnreachableError(NetworkError):
    """A hub that does not answer after all retries."""


CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0
ATTEMPTS = 3
DOWNLOAD_ATTEMPTS = 5
RETRY_SECONDS = 1.0
MAX_SMALL_BYTES = 100_000_000
MAX_WAIT_SECONDS = 60.0
PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))


class _RetryError(Exception):
    """A temporary failure: a dropped connection, a stall, a busy or failing hub."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Hub:
    """Client for one model on a hub: listing and downloads with retries; every failure is a MacllmError.

    `on_wait` is called at least five times a second during waits, also for a hub that does not answer; an exception of
    it ends the request at once.
    """

    def __init__(self, name: ModelName, on_wait: OnWait = lambda: None) -> None:
        from importlib.metadata import version

        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.utils import get_session, get_token

        self.name, self.on_wait = name, on_wait
        self.endpoint = endpoint()
        self._session: Any = get_session()
        # Depending on its version, huggingface_hub brings httpx or httpx2.
        self._http: Any = importlib.import_module(type(self._session).__module__.partition(".")[0])
        self._offline_error = OfflineModeIsEnabled
        token = None if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN") else get_token()
        self.has_token = token is not None
        self._headers = {"user-agent": f"macllm/{version('macllm')}", "accept-encoding": "identity"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    def listing(self) -> Listing:
        """All files of the revision, with sizes and hashes."""
        revision = quote(self.name.revision, safe="")
        address = f"{self.endpoint}/api/{self.name.kind}s/{self.name.repo}/revision/{revision}?blobs=true"

        def ask() -> Listing:
            content = self._content(address)
            try:
                answer = json.loads(content)
                return checked_listing(address, answer["sha"], [_repo_file(file) for file in answer["siblings"]])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise NetworkError(
                    f"{address} gives an invalid answer", cause=repr(error), remedy="check HF_ENDPOINT"
                ) from error

        return self._retry(ask)

    def content(self, address: str) -> bytes:
        """The whole answer of an address."""
        return self._retry(lambda: self._content(address))

    def read(self, commit: str, file: RepoFile) -> bytes:
        """The content of a small file, checked against its hash."""
        if file.size_bytes > MAX_SMALL_BYTES:
            raise self._mismatch(file, f"it has {file.size_bytes} bytes")

        def ask() -> bytes:
            content = self._content(self._address(commit, file.name))
            hasher = _hasher(file.digest, len(content))
            hasher.update(content)
            if hasher.hexdigest() != file.digest:
                raise self._mismatch(file, "its hash differs")
            return content

        return self._retry(ask)

    def fetch(self, commit: str, file: RepoFile, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Download `file` to `path`, resuming from the bytes already there.

        `on_bytes` gets the size of every chunk, negative for discarded bytes. After an interruption or an error `path`
        keeps the bytes received, unless they are wrong.
        """
        resumed = path.exists() and path.stat().st_size > 0
        self._complete(commit, file, path, on_bytes)
        if not matches(path, file.digest, self.on_wait):
            on_bytes(-path.stat().st_size)
            path.unlink()
            if not resumed:
                raise self._mismatch(file, "its hash differs")
            # The resumed part may have been damaged by a crash: download again from the start.
            self.fetch(commit, file, path, on_bytes)

    def _complete(self, commit: str, file: RepoFile, path: Path, on_bytes: Callable[[int], None]) -> None:
        with path.open("ab") as out:
            if out.tell() > file.size_bytes:
                on_bytes(-out.tell())
                out.truncate(0)
                out.seek(0)

            def ask() -> None:
                if out.tell() < file.size_bytes:
                    self._append(self._address(commit, file.name), file, out, on_bytes)

            self._retry(ask, DOWNLOAD_ATTEMPTS, out.tell)
            out.flush()
            sync(path)

    def _append(self, address: str, file: RepoFile, out: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        start = out.tell()

        def answer() -> Generator[tuple[int, bytes]]:
            with self._open(address, {"range": f"bytes={start}-"} if start else {}) as response:
                yield response.status_code, b""
                for chunk in response.iter_raw():
                    yield response.status_code, chunk

        for status, chunk in streamed(answer, self.on_wait):
            if not chunk and start and status != 206:
                # This server ignores ranges and sends the whole file.
                on_bytes(-start)
                out.truncate(0)
                out.seek(0)
            if out.tell() + len(chunk) > file.size_bytes:
                raise self._mismatch(file, f"the server sent more than the {file.size_bytes} bytes listed")
            out.write(chunk)
            out.flush()
            on_bytes(len(chunk))
        if out.tell() < file.size_bytes:
            raise _RetryError(f"only {out.tell()} of {file.size_bytes} bytes of {file.name} were received")

    def _retry(self, ask: Callable[[], Any], attempts: int = ATTEMPTS, progress: Callable[[], int] = lambda: 0) -> Any:
        """`ask()`, repeated after temporary failures until `attempts` in a row make no progress."""
        failures, reached = 0, progress()
        while True:
            try:
                return ask()
            except _RetryError as error:
                failures, reached = (0 if progress() > reached else failures) + 1, max(reached, progress())
                if failures >= attempts:
                    raise UnreachableError(
                        f"{self.endpoint} could not deliver {self.name}",
                        cause=str(error),
                        remedy=f"check the network, then {self.name.again}, which resumes it",
                    ) from error
                if failures == 1:
                    log.warning("%s does not answer (%s); trying again", self.endpoint, error)
                wait_seconds = max(RETRY_SECONDS * 2 ** (failures - 1), min(error.wait_seconds, MAX_WAIT_SECONDS))
                slept(wait_seconds, self.on_wait)

    @contextmanager
    def _open(self, address: str, headers: Mapping[str, str] | None = None) -> Generator[Any]:
        timeout = self._http.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
        sent = {**self._headers, **(headers or {})}
        try:
            with self._session.stream("GET", address, headers=sent, timeout=timeout, follow_redirects=True) as response:
                if response.status_code >= 400:
                    raise self._refusal(response, address)
                yield response
        except (self._http.TimeoutException, self._http.NetworkError, self._http.RemoteProtocolError) as error:
            raise _RetryError(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except (self._http.HTTPError, self._http.InvalidURL, self._offline_error) as error:
            raise NetworkError(
                f"the request for {self.name} to {self.endpoint} failed",
                cause=str(error) or type(error).__name__,
                remedy="check HF_ENDPOINT, the proxy settings and HF_HUB_OFFLINE",
            ) from error

    def _content(self, address: str) -> bytes:
        def ask() -> bytes:
            with self._open(address) as response:
                return response.read()

        return awaited(ask, self.on_wait)

    @property
    def _page(self) -> str:
        return f"{self.endpoint}/{'datasets/' if self.name.kind == 'dataset' else ''}{self.name.repo}"

    def _address(self, commit: str, file_name: str) -> str:
        return f"{self._page}/resolve/{commit}/{quote(file_name)}"

    def _refusal(self, response: Any, address: str) -> Exception:
        """The error for an answer with status 400 or above."""
        status, code = response.status_code, response.headers.get("x-error-code", "")
        reason = response.headers.get("x-error-message") or f"{status} {response.reason_phrase}".strip()
        page, kind = self._page, self.name.kind
        missing = ModelNotFoundError if kind == "model" else DataError
        if status in PASSING_STATUSES:
            wait = response.headers.get("retry-after", "")
            return _RetryError(f"{address} answered {reason}", float(wait) if wait.isdigit() else 0.0)
        if code == "GatedRepo":
            then = "wait for the approval" if self.has_token else "set HF_TOKEN to a token of that account"
            return NetworkError(
                f"{self.name.repo} requires that you accept its terms",
                cause=reason,
                remedy=f"accept them at {page}, then {then}",
            )
        if code == "RevisionNotFound":
            return missing(
                f"{self.name.repo} has no revision {self.name.revision!r}",
                cause=f"{self.endpoint} does not list it",
                remedy=f"look at {page}/tree/main, or leave @{self.name.revision} out",
            )
        if code == "EntryNotFound":
            return missing(
                f"a file of {self.name} is gone from the hub", cause=address, remedy="choose another revision"
            )
        # Without a token a hub answers 401 for private models and for missing ones.
        if code == "RepoNotFound" or status in (404, 410) or (status == 401 and not self.has_token):
            return missing(
                f"the hub has no {kind} {self.name.repo}",
                cause=f"{self.endpoint} answered {reason}",
                remedy="check the name; if it is private, set HF_TOKEN to a token that may read it",
            )
        if status in (401, 403):
            return NetworkError(
                f"{self.endpoint} refuses {self.name.repo}",
                cause=reason,
                remedy=f"check HF_TOKEN: it may be mistyped, expired or not allowed to read this {kind}",
            )
        return NetworkError(f"{self.endpoint} refuses {self.name.repo}", cause=reason, remedy=f"look at {page}")

    def _mismatch(self, file: RepoFile, cause: str) -> NetworkError:
        return NetworkError(
            f"{file.name} of {self.name} differs from the hub's listing",
            cause=cause,
            remedy=f"{self.name.again}; if it persists, do not use HF_ENDPOINT={self.endpoint}",
        )


def matches(path: Path, digest: str, on_wait: OnWait = lambda: None) -> bool:
    """True if a file's content has this SHA-256 or git SHA-1; `on_wait` is called for each MB."""
    hasher = _hasher(digest, path.stat().st_size)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
            on_wait()
    return hasher.hexdigest() == digest


def _hasher(digest: str, size_bytes: int) -> Any:
    if len(digest) == 64:
        return hashlib.sha256()
    hasher = hashlib.sha1(usedforsecurity=False)
    hasher.update(f"blob {size_bytes}\0".encode())
    return hasher


def _repo_file(sibling: Mapping[str, Any]) -> RepoFile:
    large = sibling.get("lfs")
    if large:
        return RepoFile(str(sibling["rfilename"]), int(large["size"]), str(large["sha256"]))
    return RepoFile(str(sibling["rfilename"]), int(sibling["size"]), str(sibling["blobId"]))
