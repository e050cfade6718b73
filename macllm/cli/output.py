"""Errors, narration and progress of commands, all on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO, TypeVar

from macllm.errors import MacllmError
from macllm.units import bytes_text, duration_text
from macllm.visible import one_line

if TYPE_CHECKING:
    from macllm.train.events import Advanced

T = TypeVar("T")
REDRAW_SECONDS = 0.1
PLAIN_LINE_SECONDS = 10.0
FIRST_LINE_SECONDS = 1.5


_above: list[Callable[[str], None]] = []  # at most one: the writer of a live area


def write_above(write: Callable[[str], None] | None) -> None:
    """Let `say` hand its lines to `write`, which knows of a live area on the terminal; None: to no other."""
    _above[:] = [] if write is None else [write]


def columns(stream: TextIO) -> int:
    """The width of the stream's own terminal, which may differ from stdout's; else COLUMNS, or 80."""
    with suppress(OSError, ValueError):
        if width := os.get_terminal_size(stream.fileno()).columns:
            return width
    return shutil.get_terminal_size().columns


def say(text: str) -> None:
    """Write one line of narration."""
    if _above:
        _above[0](text)
        return
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # one write, because other threads may write too


def report(error: MacllmError) -> None:
    """Write an error as `error:`, `cause:` and `try:`, one line each."""
    rows = [("error", error.message), ("cause", error.cause), ("try", error.remedy)]
    lines = [f"{_tint(word, '31' if word == 'error' else '2')}: {one_line(text)}" for word, text in rows if text]
    say("\n".join(lines))


def _tint(word: str, code: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty()
    return word if plain else f"\033[{code}m{word}\033[0m"


@dataclass
class Progress:
    """A progress line: redrawn on a terminal, a sparse log elsewhere.

    `update` may be called at any rate. On a terminal `close` erases the line; in a log a line appears
    after 1.5 seconds and then every ten, so that shorter work is silent.
    """

    label: str
    unit: str = "bytes"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    after_seconds: float = 0.0  # shorter work is silent on a terminal too
    before: float = 0.0  # done before the start, which does not count for the rate

    def __post_init__(self) -> None:
        self._redraws = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._width = 0
        self._started = self.clock()
        first = self.after_seconds - REDRAW_SECONDS if self._redraws else FIRST_LINE_SECONDS - PLAIN_LINE_SECONDS
        self._written = self._started + first

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def update(self, done: float, total: float | None = None, per_second: float | None = None) -> None:
        """Show progress. None: an unknown total, or the average rate since the start."""
        now = self.clock()
        if now - self._written < (REDRAW_SECONDS if self._redraws else PLAIN_LINE_SECONDS):
            return
        self._written = now
        elapsed = now - self._started
        rate = per_second if per_second is not None else (done - self.before) / elapsed if elapsed > 0 else 0.0
        self._write(self._line(done, total, rate))

    def close(self) -> None:
        """Erase the line on a terminal."""
        if self._redraws and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()
        self._width = 0

    def _line(self, done: float, total: float | None, rate: float) -> str:
        parts = [f"{self.label} {self._amount(done)}"]
        if total:
            parts = [
                f"{self.label} {min(100, int(100 * done / total))} %",
                f"{self._amount(done)} of {self._amount(total)}",
            ]
        if rate >= 1:
            parts.append(f"{self._amount(rate)}/s")
        if rate > 0 and total and done < total:
            parts.append(f"{duration_text((total - done) / rate)} left")
        return ", ".join(parts)

    def _amount(self, count: float) -> str:
        return bytes_text(count) if self.unit == "bytes" else f"{count:.0f} {self.unit}"

    def _write(self, line: str) -> None:
        if self._redraws:
            line = line[: columns(self.stream) - 1]  # a line that wraps cannot be redrawn
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


@contextmanager
def working(text: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show `text` and the elapsed time while the block runs: redrawn on a terminal, sparse in a log."""
    out = stream or sys.stderr
    redraws = out.isatty() and os.environ.get("TERM") != "dumb"
    over, began, width = threading.Event(), time.monotonic(), 0

    def show() -> None:
        nonlocal width
        wait = FIRST_LINE_SECONDS
        while not over.wait(wait):
            line = f"{text}, {duration_text(time.monotonic() - began)}"
            line = line[: columns(out) - 1] if redraws else line
            out.write("\r" + line.ljust(width) if redraws else line + "\n")
            out.flush()
            width, wait = len(line) if redraws else 0, 1.0 if redraws else PLAIN_LINE_SECONDS

    thread = threading.Thread(target=show, name=text, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if width:
            out.write("\r" + " " * width + "\r")
            out.flush()


def followed(work: Generator[Advanced, None, T]) -> T:
    """The result of the work, with a line of progress for each kind."""
    kind, line = "", Progress("")
    try:
        while True:
            event = next(work)
            if event.work != kind:
                line.close()
                kind, line = event.work, Progress(event.work, unit="rows")
            line.update(event.done, event.total)
    except StopIteration as end:
        return end.value
    finally:
        line.close()
