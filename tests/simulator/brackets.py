"""Comments and brackets of a kernel's text."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

OPENERS, CLOSERS = "([{", ")]}"


@dataclass(frozen=True)
class _Nesting:
    """Offsets of all brackets, those open after each, and the closing bracket of each."""

    places: list[int]
    open: list[tuple[int, ...]]
    closed: dict[int, int]


@lru_cache(maxsize=4)
def _nesting(bare: str) -> _Nesting:
    found = _Nesting([], [()], {})
    open_: tuple[int, ...] = ()
    for one in re.finditer(r"[(\[{)\]}]", bare):
        if one[0] in OPENERS:
            open_ = (*open_, one.start())
        elif open_:
            found.closed[open_[-1]] = one.start()
            open_ = open_[:-1]
        found.places.append(one.start())
        found.open.append(open_)
    return found


def around(bare: str, at: int) -> tuple[int, ...]:
    """Offsets of the brackets that are open at an offset, the outermost first."""
    nesting = _nesting(bare)
    return nesting.open[bisect_left(nesting.places, at)]


def closed(bare: str, at: int) -> int:
    """Offset of the bracket that closes the one at `at`; the end if there is none."""
    return _nesting(bare).closed.get(at, len(bare))


def parted(bare: str) -> list[str]:
    """The parts of a list, split at commas outside of all brackets, angle brackets included."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(bare):
        depth += (letter in OPENERS + "<") - (letter in CLOSERS + ">")
        if letter == "," and depth == 0:
            parts.append(bare[begin:i])
            begin = i + 1
    return [*parts, bare[begin:]]


def without_comments(text: str, *, strings: bool = False) -> str:
    """The text with comments replaced by blanks, and strings, too, unless `strings`."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if strings and found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0])

    return re.sub(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"', blank, text, flags=re.DOTALL)
