"""Comments and brackets of a kernel's text."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

OPENERS, CLOSERS = "([{", ")]}"


@dataclass(frozen=True)
class _Nesting:
    """Places of all brackets, those that are open behind each, and where each is closed."""

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
    """Places of the brackets that are open at a place, the outermost first."""
    nesting = _nesting(bare)
    return nesting.open[bisect_left(nesting.places, at)]


def closed(bare: str, at: int) -> int:
    """The place where the bracket at another is closed; the end if it is not."""
    return _nesting(bare).closed.get(at, len(bare))


def parted(bare: str) -> list[str]:
    """The parts of a list, at commas that are in no brackets, angles among them."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(bare):
        depth += (letter in OPENERS + "<") - (letter in CLOSERS + ">")
        if letter == "," and depth == 0:
            parts.append(bare[begin:i])
            begin = i + 1
    return [*parts, bare[begin:]]


def without_comments(text: str, *, strings: bool = False) -> str:
    """The text with blanks for its comments, and for its strings unless they are kept."""

    def blank(found: re.Match[str]) -> str:
        return found[0] if strings and found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0])

    return re.sub(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"', blank, text, flags=re.DOTALL)
