"""The end of the app after that of its terminal."""

from __future__ import annotations

import os
import pty
import threading

import pytest

from macllm_tui import hangup


def test_a_vanished_terminal_ends_the_app_and_then_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hangup, "_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(hangup, "_GRACE_SECONDS", 0.02)
    keyboard, terminal = pty.openpty()
    told, left = threading.Event(), list[int]()
    thread = hangup.watch_terminal(terminal, told.set, left.append)
    assert not told.wait(0.1)
    os.close(keyboard)
    thread.join(5)
    assert (told.is_set(), left) == (True, [129])
    os.close(terminal)
