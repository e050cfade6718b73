"""Paths that complete a typed one. No Textual in here."""

from __future__ import annotations

import fnmatch
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from macllm.chat.attachments import located

from .matching import Positions, ranked

_MOST_READ = 20_000
_MOST_SHOWN = 200
_SHORTEST_DEEP = 2  # characters of a name that is searched in the folders below
_MOST_SECONDS = 0.02
_KEPT_SECONDS = 10.0
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

    Relative to `folder`, or to the working directory; ~ is the home folder. For a name without a folder, those in
    the folders below follow.
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
    choices = [PathChoice(parent + slash + name, name, positions) for name, positions in found]
    if not slash and len(query) >= _SHORTEST_DEEP:
        choices += _matches_below(query, place, ignored)
    return choices[:_MOST_SHOWN]


def _matches_below(query: str, place: Path, ignored: tuple[str, ...]) -> list[PathChoice]:
    if Path.home().is_relative_to(place.resolve()):  # macOS asks the user before a program reads some folders there
        return []
    choices: list[PathChoice] = []
    below = _files_below(place, ignored, int(time.monotonic() / _KEPT_SECONDS))
    for path, positions in ranked(query, below, lambda path: path.rpartition("/")[2], fuzzy=False):
        start = path.rfind("/") + 1
        choices.append(PathChoice(path, path, tuple(start + position for position in positions)))
    return choices


@lru_cache(maxsize=1)
def _files_below(place: Path, ignored: tuple[str, ...], period: int) -> tuple[str, ...]:
    """The files in the folders below, nearest first, as many as can be found at once; kept for a `period`."""
    found: list[str] = []
    waiting = [name for name in _names(place) if name.endswith("/") and not _is_last(name, ignored, False)]
    end = time.monotonic() + _MOST_SECONDS
    for folder in waiting:  # grows
        if time.monotonic() > end or len(found) > _MOST_READ:
            break
        names = [name for name in _names(place / folder) if not _is_last(name, ignored, False)]
        found += [folder + name for name in names if not name.endswith("/")]
        waiting += [folder + name for name in names if name.endswith("/")]
    return tuple(found)


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
