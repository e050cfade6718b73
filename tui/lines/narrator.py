"""Narration on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable

from macllm.visible import one_line, visible


class Narrator:
    """Writes narration to stderr: lines, and where a terminal can redraw also a transient status."""

    def __init__(self, *, redraws: bool = True) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.redraws = redraws and self.terminal and os.environ.get("TERM") != "dumb"
        self._shown = ""

    def show(self, text: str) -> None:
        """Show a transient status, if it can be drawn over."""
        if self.redraws and text != self._shown:
            self._shown = text
            self._put(f"\r\x1b[K{one_line(text)}")

    def clear(self) -> None:
        """Erase the transient status."""
        if self._shown:
            self._shown = ""
            self._put("\r\x1b[K")

    def remark(self, text: str) -> None:
        """Write a line for a person who waits; a pipe or a file does not get it."""
        if self.terminal:
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line, or several."""
        self.clear()
        self._put(f"{visible(text)}\n")

    def say_all(self, lines: Iterable[str]) -> None:
        """Write lines."""
        for line in lines:
            self.say(line)

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
