"""Narration: errors and progress, on a terminal and in a log."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import termios
import time

import pytest

from macllm.cli import output
from macllm.cli.output import Progress, columns, working
from macllm.errors import UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_on_a_terminal_is_one_line_that_is_redrawn_and_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    with Progress("model.safetensors", stream=stream, clock=clock) as progress:
        clock.now += 2
        progress.update(50_000_000, 200_000_000)
        progress.update(50_000_001, 200_000_000)
        clock.now += 6
        progress.update(200_000_000, 200_000_000)
    first, second, wiped, end = stream.getvalue().split("\r")[1:]
    assert first == "model.safetensors 25 %, 50.0 MB of 200.0 MB, 25.0 MB/s, 6 s left"
    assert second.rstrip() == "model.safetensors 100 %, 200.0 MB of 200.0 MB, 25.0 MB/s"
    assert len(second) == len(first)
    assert wiped.strip() == ""
    assert end == ""


def test_progress_in_a_log_is_a_line_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("prompt", unit="tokens", stream=stream, clock=clock) as progress:
        for done in range(1, 26):
            clock.now += 1
            progress.update(done * 100, 10_000)
    assert stream.getvalue().splitlines() == [
        "prompt 2 %, 200 tokens of 10000 tokens, 100 tokens/s, 1 min 38 s left",
        "prompt 12 %, 1200 tokens of 10000 tokens, 100 tokens/s, 1 min 28 s left",
        "prompt 22 %, 2200 tokens of 10000 tokens, 100 tokens/s, 1 min 18 s left",
    ]


def test_progress_without_a_total_shows_none() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("rows", unit="rows", stream=stream, clock=clock)
    clock.now += 20
    progress.update(40)
    assert stream.getvalue() == "rows 40 rows, 2 rows/s\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_and_dumb_terminals_turn_colour_off(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(output.sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.report(UsageError("no"))
    monkeypatch.setenv(variable, value)
    output.report(UsageError("no"))
    assert stream.getvalue().splitlines() == ["\033[31merror\033[0m: no", "error: no"]


def test_long_work_prints_a_line_to_a_log_and_short_work_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FIRST_LINE_SECONDS", 0.02)
    stream = io.StringIO()
    with working("loading the model", stream):
        time.sleep(0.2)
    assert stream.getvalue().splitlines() == ["loading the model, 0 s"]
    monkeypatch.setattr(output, "FIRST_LINE_SECONDS", 60.0)
    with working("loading the model", stream):
        pass
    assert len(stream.getvalue().splitlines()) == 1


def test_the_line_of_long_work_is_wiped_from_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "FIRST_LINE_SECONDS", 0.02)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with working("merging", stream):
        time.sleep(0.2)
    shown = "merging, 0 s"
    assert stream.getvalue() == f"\r{shown}\r{' ' * len(shown)}\r"


def test_the_width_is_that_of_the_stream_and_lines_fit_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert columns(io.StringIO()) == 77
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        assert columns(terminal) == 77  # a terminal that does not tell its width
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        assert columns(terminal) == 20
        monkeypatch.setenv("TERM", "xterm")
        clock = Clock()
        with Progress("a label of many words", stream=terminal, clock=clock) as progress:
            clock.now += 1
            progress.update(1)
            assert os.read(ours, 100) == b"\ra label of many wor"
    os.close(ours)
