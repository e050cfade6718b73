"""A few lines at the bottom of a terminal that are redrawn in place, below the lines that stay."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO

from . import output

REDRAW_SECONDS = 0.1
TICK_SECONDS = 0.5  # between two redraws while nothing happens, for clocks and a new width
_ERASE_LINE, _ERASE_BELOW = "\033[K", "\033[J"
Line = list[tuple[str, str]]
"""Parts of a line, each with the number of its colour or ""."""


def is_live(stream: TextIO) -> bool:
    """True if lines on the stream can be redrawn."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_blocks(stream: TextIO) -> bool:
    """True if the stream can show block and box characters."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


@dataclass
class LiveArea:
    """The area. `render` gives its lines for a width in columns and is called at most ten times a second.

    Each change is one write, and the cursor is neither hidden nor moved elsewhere, so that a process that is killed
    leaves a terminal that works. `say` of the module `output` writes above the area while it is open. It is redrawn
    twice a second after the first change too: what `render` reads is changed under `lock`.
    """

    render: Callable[[int], list[Line]]
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    columns: Callable[[], int] | None = None  # of the stream's terminal

    def __post_init__(self) -> None:
        self._drawn: list[str] = []  # without colours
        self._at = float("-inf")
        self.lock = threading.RLock()
        self._over = threading.Event()  # the area is closed
        self._ticker: threading.Thread | None = None
        self._before: Any = None
        self._columns = self.columns or (lambda: output.columns(self.stream))
        self._colours = not os.environ.get("NO_COLOR")

    def open(self) -> None:
        """Take the lines of `say`, and the signal after a stop."""
        output.write_above(self.say)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGCONT, self._continued)

    def changed(self) -> None:
        """Redraw, unless that was done less than a tenth of a second ago."""
        if self._over.is_set():
            return
        if self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, name="live area", daemon=True)
            self._ticker.start()
        with self.lock:
            if self.clock() - self._at >= REDRAW_SECONDS:
                self._draw()

    def say(self, text: str) -> None:
        """Write a line that stays, above the area."""
        with self.lock:
            self._draw(above=f"{text}\n")

    def close(self) -> None:
        """Erase the area. Later lines are written as without it."""
        self._over.set()
        if self._ticker is not None:
            self._ticker.join()
            self._ticker = None
        with self.lock:
            if self._drawn:
                self._write(self._top(self._columns()) + _ERASE_BELOW)
            self._drawn = []
        output.write_above(None)
        if self._before is not None:
            signal.signal(signal.SIGCONT, self._before)
            self._before = None

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self.changed()

    def _draw(self, above: str = "") -> None:
        if not self._in_foreground():
            self._drawn = []
            self._write(above)
            return
        width = self._columns()
        lines = [_clipped(line, max(1, width - 1)) for line in self.render(width)]
        top = self._top(width)
        plain = ["".join(text for text, _ in line) for line in lines]
        if above:
            top += _ERASE_BELOW + above
        elif plain == self._drawn:
            return
        self._write(top + "\n".join(self._painted(line) + _ERASE_LINE for line in lines) + _ERASE_BELOW)
        self._drawn, self._at = plain, self.clock()

    def _top(self, width: int) -> str:
        """Codes for the beginning of what is drawn. Terminals wrap lines that a new width is too small for."""
        rows = sum(max(1, -(-len(line) // width)) for line in self._drawn)
        return "\r" + (f"\033[{rows - 1}A" if rows > 1 else "")

    def _painted(self, line: Line) -> str:
        return "".join(f"\033[{code}m{text}\033[0m" if code and self._colours else text for text, code in line)

    def _write(self, text: str) -> None:
        if text:
            self.stream.write(text)
            self.stream.flush()

    def _in_foreground(self) -> bool:
        """False for a job in the background of the shell, which has the terminal's lines for its own."""
        try:
            return os.tcgetpgrp(self.stream.fileno()) == os.getpgrp()
        except (OSError, ValueError):  # no file, or not the terminal of this process
            return True

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """After a stop by Ctrl-Z the shell has written below the area: begin a new one."""
        self._drawn = []
        if callable(self._before):
            self._before(number, frame)


def _clipped(line: Line, width: int) -> Line:
    kept: Line = []
    for text, code in line:
        if width <= 0:
            break
        kept.append((text[:width], code))
        width -= len(text)
    return kept
