"""A hub on 127.0.0.1 with the two endpoints of a download, and faults to inject."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


def digest_of(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass
class Repo:
    """Files of one repository; those in `large` are LFS files behind a redirect to a second origin."""

    files: dict[str, bytes]
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main",)
    large: tuple[str, ...] = (".safetensors",)
    listing: dict[str, Any] = field(default_factory=dict)
    kind: str = "models"

    def is_large(self, name: str) -> bool:
        return name.endswith(self.large)

    def siblings(self) -> list[dict[str, Any]]:
        entries = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": digest_of(content, False)}
            if self.is_large(name):
                entry["lfs"] = {"sha256": digest_of(content, True), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries


@dataclass
class Faults:
    """Injected faults: `status` of the next answers for a file, or bytes until the connection drops."""

    api: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    files: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    drop_after: dict[str, list[int]] = field(default_factory=dict)
    stall_after: dict[str, int] = field(default_factory=dict)
    stall_api: bool = False
    replace: dict[str, list[bytes]] = field(default_factory=dict)
    ignore_range: bool = False
    seconds_per_chunk: float = 0.0


class _Server(ThreadingHTTPServer):
    hub: LoopbackHub

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect, as many tests make them."""


class LoopbackHub:
    """A hub of `repos` that records requests and counts the body bytes sent for every file."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes: dict[str, int] = {}
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self._servers = [_Server(("127.0.0.1", 0), _Answer) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]

    def __enter__(self) -> LoopbackHub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def paths(self) -> list[str]:
        with self.lock:
            return [path for _, path, _ in self.requests]


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if path == "/api/models":
            self.found(parse_qs(urlsplit(self.path).query))
        elif path.startswith(("/api/models/", "/api/datasets/")):
            kind, _, asked = path.removeprefix("/api/").partition("/")
            self.api(asked, kind)
        elif "/resolve/" in path:
            page, _, rest = path.removeprefix("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            repo = self.hub.repos.get(page.removeprefix("datasets/"))
            is_right = repo is not None and page.startswith("datasets/") == (repo.kind == "datasets")
            self.file(repo if is_right else None, commit, name)
        elif path.startswith("/storage/"):
            _, _, rest = path.removeprefix("/storage/").partition("/")
            repo, _, name = rest.partition("//")
            self.content(name, self.hub.repos[repo].files[name])
        else:
            self.refuse(404, {})

    def found(self, asked: dict[str, list[str]]) -> None:
        """The repositories whose names contain the words; `listing` has the rest of an entry."""
        names = [name for name in self.hub.repos if all(word in name for word in asked["search"][0].split())]
        entries = [{"id": name, "tags": [], **self.hub.repos[name].listing} for name in names]
        self.answer(200, json.dumps(entries).encode())

    def api(self, path: str, kind: str) -> None:
        repo, _, revision = path.partition("/revision/")
        if self.hub.faults.stall_api:
            self.hub.stop.wait(30)
        if self.hub.faults.api:
            self.refuse(*self.hub.faults.api.pop(0))
        elif repo not in self.hub.repos or self.hub.repos[repo].kind != kind:
            self.refuse(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in (*self.hub.repos[repo].revisions, self.hub.repos[repo].commit):
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            listing = {"id": repo, "sha": self.hub.repos[repo].commit, "siblings": self.hub.repos[repo].siblings()}
            self.answer(200, json.dumps(listing | self.hub.repos[repo].listing).encode())

    def file(self, repo: Repo | None, commit: str, name: str) -> None:
        if self.hub.faults.files.get(name):
            self.refuse(*self.hub.faults.files[name].pop(0))
        elif repo is None or commit != repo.commit or name not in repo.files:
            self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        elif repo.is_large(name):
            of = next(key for key, value in self.hub.repos.items() if value is repo)
            self.answer(302, b"", {"Location": f"{self.hub.storage}/storage/{commit}/{of}//{name}"})
        else:
            self.content(name, repo.files[name])

    def content(self, name: str, content: bytes) -> None:
        if self.hub.faults.replace.get(name):
            content = self.hub.faults.replace[name].pop(0)
        asked = self.headers.get("range", "").removeprefix("bytes=").removesuffix("-")
        start = int(asked) if asked and not self.hub.faults.ignore_range else 0
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.send_response(206 if start else 200)
        for key, value in {**extra, "Content-Length": str(len(content) - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        drop = self.hub.faults.drop_after.get(name)
        end = min(len(content), start + drop.pop(0)) if drop else len(content)
        try:
            self.pieces(name, content, start, end)
        except OSError:
            self.close_connection = True
        if end < len(content):
            self.close_connection = True

    def pieces(self, name: str, content: bytes, start: int, end: int) -> None:
        while start < end:
            piece = content[start : min(end, start + 16_384)]
            if start + len(piece) > self.hub.faults.stall_after.get(name, end):
                self.hub.stop.wait(30)
                return
            self.wfile.write(piece)
            self.wfile.flush()
            start += len(piece)
            with self.hub.lock:
                self.hub.sent_bytes[name] = self.hub.sent_bytes.get(name, 0) + len(piece)
            if self.hub.faults.seconds_per_chunk:
                time.sleep(self.hub.faults.seconds_per_chunk)

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.answer(status, b"{}", headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
