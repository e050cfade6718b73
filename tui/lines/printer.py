"""Output of answers."""

from __future__ import annotations

import errno
import io
import sys

from macllm.visible import visible

from .paced import PacedText


class Printer:
    """Writes an answer to stdout, without empty lines around it and with one final newline.

    Text for a pipe or a file is written unchanged and at once; on a terminal, control characters are made visible.
    With `paced`, a terminal gets whole sentences and readable tables, as a screen reader needs them.
    """

    def __init__(self, *, paced: bool = False) -> None:
        self._held = ""  # newlines that are written only if more follows
        self._begun = False
        self._label = ""
        self._terminal = sys.stdout.isatty()
        self._paced = PacedText() if paced and self._terminal else None
        if not self._terminal and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="\n")

    def begin(self, label: str = "") -> None:
        """Start an answer; the label is written before its first text."""
        self._held, self._begun, self._label = "", False, label
        if self._paced:
            self._paced = PacedText()

    def write(self, text: str) -> None:
        """Write a piece of the answer."""
        self._write(self._paced.feed(text) if self._paced else text)

    def catch_up(self) -> None:
        """Write the text held back, because no more comes for now."""
        if self._paced:
            self._write(self._paced.rest())

    def end(self) -> None:
        """End the line, if anything was written."""
        if self._paced:
            self._write(self._paced.end())
        if self._begun:
            self.raw("\n")
        self._begun = False

    def raw(self, text: str) -> None:
        """Write text unchanged. Raises: BrokenPipeError if the reader or the terminal is gone."""
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise BrokenPipeError(errno.EPIPE, "the terminal is closed") from error

    def _write(self, text: str) -> None:
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
