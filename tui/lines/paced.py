"""Streaming Markdown as whole sentences and lines, with tables as `Header: value` lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_LONGEST_SECONDS = 1.0  # that text is held back while more of its sentence comes
_SENTENCE_END = re.compile(r"[.!?:;…。！？]+[\"'”’)\]*_]*\s")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_ROW = re.compile(r" {0,3}\|")
_RULE = re.compile(r"\s*\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?\s*)?$")
_BAR = re.compile(r"(?<!\\)\|")


class PacedText:
    """Takes text in any pieces, and returns the part that may be written now; nothing is returned twice."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._returned = clock()
        self._line = ""  # the unfinished line
        self._written = 0  # characters of it that were returned
        self._fence = ""
        self._rows: list[str] = []  # of a table whose header is not certain yet
        self._header: list[str] = []
        self._ragged = False  # the lines with bars are no table

    def feed(self, text: str) -> str:
        """Add text. Returns finished lines and sentences."""
        *lines, last = (self._line + text).split("\n")
        out = "".join(map(self._ended, lines))
        self._line = last
        if not self._fence and not self._is_row(last):
            ends = [match.end() for match in _SENTENCE_END.finditer(self._line, self._written)]
            if not ends and self._clock() - self._returned > _LONGEST_SECONDS:
                ends = [self._line.rfind(" ") + 1]
            out += self._up_to(ends[-1]) if ends else ""
        if out:
            self._returned = self._clock()
        return out

    def rest(self) -> str:
        """The text that is held back, except a row of a table."""
        return "" if self._is_row(self._line) else self._up_to(len(self._line))

    def end(self) -> str:
        """All that is held back."""
        last, self._line = self._line, ""
        return (self._ended(last) + self._end_table()).removesuffix("\n") if last else self._end_table()

    def _is_row(self, line: str) -> bool:
        return not self._fence and not self._ragged and not self._written and _ROW.match(line) is not None

    def _up_to(self, end: int) -> str:
        # A table before this line has ended, unless the line may still become a row of it
        before = self._end_table() if self._line[:end].strip() else ""
        text = self._line[self._written : end]
        self._written = max(self._written, end)
        return before + text

    def _ended(self, line: str) -> str:
        """The finished `line`, as far as it was not returned before."""
        if self._is_row(line):
            return self._row(line)
        written, self._written = self._written, 0
        before = "" if written else self._end_table()
        self._ragged = self._ragged and _ROW.match(line) is not None
        if fence := _FENCE.match(line):
            self._fence = "" if self._fence == fence[1] else self._fence or fence[1]
        return before + line[written:] + "\n"

    def _row(self, line: str) -> str:
        if self._header:
            cells = _cells(line)
            named = zip(self._header, cells + [""] * (len(self._header) - len(cells)), strict=False)
            return "".join(f"{name}: {value}\n" if name else f"{value}\n" for name, value in named if value) + "\n"
        self._rows.append(line)
        if len(self._rows) == 1:
            return ""
        if _RULE.match(line):
            self._header = _cells(self._rows[0])
            self._rows.clear()
            return ""
        self._ragged = True
        return self._end_table()

    def _end_table(self) -> str:
        rows, self._rows, self._header = self._rows, [], []
        return "".join(f"{row}\n" for row in rows)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _BAR.split(line.strip().removeprefix("|").removesuffix("|"))]
