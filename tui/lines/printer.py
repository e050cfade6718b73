"""Output of answers."""

from __future__ import annotations

import io
import sys

from ..text.visible import visible


class Printer:
    """Writes an answer to stdout unbuffered, without empty lines around it and with one final newline."""

    def __init__(self) -> None:
        self._held = ""  # newlines that are written only if more follows
        self._begun = False
        self._label = ""
        self._terminal = sys.stdout.isatty()
        if not self._terminal and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")

    def begin(self, label: str = "") -> None:
        """Start an answer; the label is written before its first text."""
        self._held, self._begun, self._label = "", False, label

    def write(self, text: str) -> None:
        """Write a piece of the answer; on a terminal, control characters are made visible."""
        text = self._held + (visible(text) if self._terminal else text)
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        if not self._begun:
            kept = kept.lstrip("\n")
            if not kept:
                self._held = ""
                return
            self._begun = True
            kept = self._label + kept
        if kept:
            self.raw(kept)

    def end(self) -> None:
        """End the line, if anything was written."""
        if self._begun:
            self.raw("\n")
        self._begun = False

    def raw(self, text: str) -> None:
        """Write text unchanged. Raises: BrokenPipeError if the reader has closed the pipe."""
        sys.stdout.write(text)
        sys.stdout.flush()
