"""Paths that complete a typed one. No Textual in here."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from macllm.chat.attachments import located

from .matching import Positions, ranked

_MOST_READ = 20_000
_MOST_SHOWN = 200
_IGNORED = ("__pycache__", "node_modules", "build", "dist", "target", "*.pyc", "*.o", "*~", "*.egg-info", "DerivedData")


@dataclass(frozen=True)
class PathChoice:
    """A path that begins as typed; that of a folder ends with a slash.

    `positions` are those of the match in its last name.
    """

    path: str
    name: str
    positions: Positions

    @property
    def is_folder(self) -> bool:
        """True for a folder, whose files can be chosen next."""
        return self.path.endswith("/")


def paths(typed: str, folder: Path | None = None) -> list[PathChoice]:
    """The files and folders whose name contains the last part of `typed`, hidden and ignored ones last.

    Relative to `folder`, or to the working directory; ~ is the home folder.
    """
    parent, slash, query = typed.rpartition("/")
    if typed == "~":
        return [PathChoice("~/", "~/", (0,))]
    place = located(parent + slash, folder)
    names = _names(place)
    ignored = _IGNORED + _patterns(place / ".gitignore") + _patterns((folder or Path()) / ".gitignore")
    shows_hidden = query.startswith(".")
    found = ranked(query, names, lambda name: name, fuzzy=False)
    found.sort(key=lambda each: _is_last(each[0], ignored, shows_hidden))
    return [PathChoice(parent + slash + name, name, positions) for name, positions in found[:_MOST_SHOWN]]


def _is_last(name: str, ignored: tuple[str, ...], shows_hidden: bool) -> bool:
    plain = name.rstrip("/")
    hidden = plain.startswith(".") and not shows_hidden
    return hidden or any(fnmatch.fnmatchcase(plain, pattern) for pattern in ignored)


def _names(place: Path) -> list[str]:
    """The names in a folder, folders with a slash, in alphabetical order; none if it cannot be read."""
    names: list[str] = []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                names.append(entry.name + "/" * _is_folder(entry))
                if len(names) == _MOST_READ:
                    break
    except (OSError, ValueError):
        return []
    return sorted((name for name in names if name.isprintable()), key=str.lower)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _patterns(gitignore: Path) -> tuple[str, ...]:
    """The patterns of a .gitignore that are for names, without exceptions and paths."""
    try:
        return _parsed(gitignore, gitignore.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _parsed(gitignore: Path, changed_ns: int) -> tuple[str, ...]:
    lines = gitignore.read_text(encoding="utf-8", errors="replace").splitlines()
    stripped = [line.strip().strip("/") for line in lines if line.strip() and line[0] not in "#!"]
    return tuple(pattern for pattern in stripped if "/" not in pattern)
