"""Cache of encoded rows on disk: content-addressed files, the longest unused deleted first.

    magic, length of the header (8 bytes), header (JSON), arrays, SHA-256 of all before

A file that is damaged, incomplete or of another kind counts as absent, and a disk that is full only means no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from macllm.files import replacing

_MAGIC = b"macllm encoded rows 2\n"
_SUFFIX = ".rows"
_DIGEST_BYTES = 32
_SPARE_BYTES = 1 << 30  # left free on the disk, for the snapshots of the run
_DRAFT_SECONDS = 3600  # age of an abandoned draft
_DTYPES = {name: np.dtype(name) for name in ("<i4", "<i8", "<f4", "|u1")}

Arrays = Mapping[str, np.ndarray]
T = TypeVar("T")


def folder() -> Path:
    """Folder of the cache: under $MACLLM_HOME, else in XDG's cache folder."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home) / "cache" / "encoded"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macllm" / "encoded"


def entries() -> list[tuple[Path, int]]:
    """Cached files and their sizes in bytes, the longest unused first."""
    found: list[tuple[float, Path, int]] = []
    for path in _listed():
        with suppress(OSError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def clear() -> int:
    """Delete the cache; the bytes freed. Raises OSError."""
    freed = 0
    for path, size in entries():
        path.unlink(missing_ok=True)
        freed += size
    return freed


def load(key: str, restored: Callable[[dict[str, Any], dict[str, np.ndarray]], T]) -> T | None:
    """The result of `restored` on the header and the arrays stored under a key; None without any.

    It may raise ValueError and the like for those that it did not expect; they count as absent, too.
    """
    path = folder() / f"{key}{_SUFFIX}"
    try:
        with path.open("rb") as file:
            found = restored(*_read(file, path.stat().st_size, key))
        os.utime(path)  # used now
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError):
        return None
    return found


def store(key: str, header: Mapping[str, Any], arrays: Arrays, limit_bytes: int) -> bool:
    """Store arrays under a key, and keep the whole cache within the limit.

    False if there is no room for them.
    """
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    head = json.dumps({**header, "key": key, "arrays": shapes}).encode()
    contents = [np.ascontiguousarray(array).data.cast("B") for array in arrays.values() if array.size]
    parts = [_MAGIC, len(head).to_bytes(8, "little"), head, *contents]
    size = sum(map(len, parts)) + _DIGEST_BYTES
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if size > limit_bytes or size + _SPARE_BYTES > shutil.disk_usage(folder()).free:
            return False
        _make_room(limit_bytes - size)
        digest = hashlib.sha256()
        with replacing(folder() / f"{key}{_SUFFIX}") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
    except OSError:  # a full or read-only disk
        return False
    return True


def _listed() -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in folder().iterdir() if path.name.endswith((_SUFFIX, ".tmp")))


def _make_room(limit_bytes: int) -> None:
    """Delete the longest unused files until the others take at most that much, and abandoned drafts."""
    kept = entries()
    total = sum(size for _, size in kept)
    for path, size in kept:
        is_draft = path.suffix == ".tmp"
        with suppress(OSError):
            if is_draft and time.time() - path.stat().st_mtime < _DRAFT_SECONDS:
                continue
            if is_draft or total > limit_bytes:
                path.unlink()
                total -= size


def _read(file: BinaryIO, size: int, key: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Raises ValueError and others for anything but what `store` writes."""
    digest = hashlib.sha256()

    def take(count: int) -> bytes:
        if not 0 <= count <= size:
            raise ValueError("a length is wrong")
        content = file.read(count)
        digest.update(content)
        return content

    if take(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is another kind of file")
    head = take(int.from_bytes(take(8), "little"))
    header = json.loads(head)
    shapes = {name: (_DTYPES[kind], tuple(map(int, shape))) for name, (kind, shape) in header.pop("arrays").items()}
    expected = sum(kind.itemsize * int(np.prod(shape, dtype=object)) for kind, shape in shapes.values())
    if file.tell() + expected + _DIGEST_BYTES != size or header.pop("key") != key:
        raise ValueError("it is incomplete or of another key")
    arrays: dict[str, np.ndarray] = {}
    for name, (kind, shape) in shapes.items():
        array = np.fromfile(file, dtype=kind, count=int(np.prod(shape, dtype=object)))
        digest.update(array.data.cast("B") if array.size else b"")
        arrays[name] = array.reshape(shape)
    if file.read() != digest.digest():
        raise ValueError("its hash differs")
    return header, arrays
