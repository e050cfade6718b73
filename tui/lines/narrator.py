"""Narration on stderr."""

from __future__ import annotations

import contextlib
import os
import sys


class Narrator:
    """Writes narration to stderr: lines, and on a terminal also a transient status."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""

    def show(self, text: str) -> None:
        """Show a transient status; terminals only."""
        if self.terminal and text != self._shown:
            self._shown = text
            self._put(f"\r\x1b[K{text}")

    def clear(self) -> None:
        """Erase the transient status."""
        if self._shown:
            self._shown = ""
            self._put("\r\x1b[K")

    def say(self, text: str) -> None:
        """Write a line."""
        self.clear()
        self._put(f"{text}\n")

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
