"""Comments and brackets of a kernel's text."""

from __future__ import annotations

import re

OPENERS, CLOSERS = "([{", ")]}"


def around(bare: str, at: int) -> list[int]:
    """Places of the brackets that are open at a place, the outermost first."""
    open_: list[int] = []
    for found in re.finditer(r"[(\[{)\]}]", bare[:at]):
        if found[0] in OPENERS:
            open_.append(found.start())
        elif open_:
            open_.pop()
    return open_


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
