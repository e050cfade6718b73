"""Lines at the bottom of a terminal that are redrawn in place."""

from __future__ import annotations

import io
import signal
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import pytest

from macllm.cli import output
from macllm.cli.live import Line, LiveArea, is_live
from tests.cli.emulator import Emulator


class Screen(io.StringIO):
    """A stream to an emulator, which keeps each write."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.emulator = Emulator(columns)
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        self.emulator.write(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return self.emulator.lines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@contextmanager
def opened(live: LiveArea) -> Generator[LiveArea]:
    live.open()
    try:
        yield live
    finally:
        live.close()


def area(screen: Screen, lines: list[Line]) -> AbstractContextManager[LiveArea]:
    return opened(LiveArea(lambda _: lines, screen, Clock(), columns=lambda: screen.emulator.columns))


def test_lines_said_stay_above_the_area_which_is_erased_at_the_end() -> None:
    screen = Screen(40)
    lines: list[Line] = [[("bar ", ""), ("━━━", "36")], [("loss 2.0", "")]]
    with area(screen, lines) as live:
        live.changed()
        assert screen.lines == ["bar ━━━", "loss 2.0"]
        output.say("step 1 validation")
        lines[1][:] = [("loss", "")]
        live.changed()
        assert screen.lines == ["step 1 validation", "bar ━━━", "loss"]
        output.say("x" * 95)  # wraps
        del lines[1]
        live.changed()
        assert screen.lines == ["step 1 validation", "x" * 40, "x" * 40, "x" * 15, "bar ━━━"]
    assert screen.lines == ["step 1 validation", "x" * 40, "x" * 40, "x" * 15, ""]


def test_a_change_is_one_write_and_no_change_is_none() -> None:
    screen = Screen(40)
    lines: list[Line] = [[("a", "")], [("b", "")]]
    with area(screen, lines) as live:
        live.changed()
        live.changed()
        assert len(screen.writes) == 1
        live.say("told")
        assert len(screen.writes) == 2
    assert "\033[?" not in "".join(screen.writes)  # the cursor is not hidden: nothing to restore after a kill


def test_it_is_redrawn_at_most_ten_times_a_second() -> None:
    screen, clock = Screen(40), Clock()
    count = 0

    def render(_width: int) -> list[Line]:
        nonlocal count
        count += 1
        return [[(str(count), "")]]

    with opened(LiveArea(render, screen, lambda: clock.now, columns=lambda: 40)) as live:
        for _ in range(1000):
            clock.now += 0.01
            live.changed()
    assert 90 <= count <= 110


@pytest.mark.parametrize("columns", [200, 41, 40, 39, 20, 7, 1])
def test_a_new_width_leaves_no_remains(columns: int) -> None:
    screen = Screen(80)
    lines: list[Line] = [[("long " * 15, "")], [("second line", "")]]
    with area(screen, lines) as live:
        output.say("before")
        screen.emulator.resize(columns)
        live.say("after")
        shown = [line[0][0][: max(1, columns - 1)].rstrip() for line in lines]
        assert screen.lines[-2:] == shown
        live.say("end")
    assert "".join(screen.lines).replace(" ", "") == "beforeafterend"


def test_ticks_redraw_while_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm.cli.live.TICK_SECONDS", 0.01)
    screen = Screen(40)
    lines: list[Line] = [[("a", "")]]
    with area(screen, lines) as live:
        live.changed()
        with live.lock:
            lines[0][:] = [("b", "")]
        deadline = time.monotonic() + 20
        while screen.lines != ["b"] and time.monotonic() < deadline:
            time.sleep(0.005)
        assert screen.lines == ["b"]


def test_a_job_that_was_stopped_begins_below_the_lines_of_the_shell() -> None:
    screen = Screen(40)
    before = signal.getsignal(signal.SIGCONT)
    with area(screen, [[("area", "")]]) as live:
        live.changed()
        screen.emulator.write("^Z\r\n[1]+ Stopped\r\n$ fg\r\n")
        signal.raise_signal(signal.SIGCONT)
        live.changed()
        assert screen.lines == ["area^Z", "[1]+ Stopped", "$ fg", "area"]
    assert signal.getsignal(signal.SIGCONT) == before


def test_after_an_error_the_area_is_gone_and_lines_are_written_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(40)

    def interrupted() -> None:
        with area(screen, [[("area", "")]]) as live:
            live.changed()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert screen.lines == [""]
    output.say("plain")
    assert capsys.readouterr().err == "plain\n"


def test_no_color_turns_colours_off_and_a_dumb_terminal_has_no_area(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(40)
    monkeypatch.setenv("TERM", "xterm")
    assert is_live(screen)
    assert not is_live(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    with area(screen, [[("a", "36")]]) as live:
        live.changed()
    assert "\033[36m" not in "".join(screen.writes)
    monkeypatch.setenv("TERM", "dumb")
    assert not is_live(screen)
