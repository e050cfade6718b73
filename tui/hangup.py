"""End of the app when its terminal is gone. No Textual in here.

A terminal that dies sends SIGHUP, but not to a process that was just in the background. Textual's thread would then
read the end of its input forever, at full speed.
"""

from __future__ import annotations

import os
import signal
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress

HUNG_UP = 128 + signal.SIGHUP
_INTERVAL_SECONDS = 1.0
_GRACE_SECONDS = 5.0


def watch_terminal(
    terminal: int, on_gone: Callable[[], object], leave: Callable[[int], object] = os._exit
) -> threading.Thread:
    """Watch a terminal in a thread: when it is gone call `on_gone`, and `leave` 5 s later."""
    thread = threading.Thread(target=_watch, args=(terminal, on_gone, leave), name="macllm-hangup", daemon=True)
    thread.start()
    return thread


def _watch(terminal: int, on_gone: Callable[[], object], leave: Callable[[int], object]) -> None:
    while _is_there(terminal):
        time.sleep(_INTERVAL_SECONDS)
    with suppress(RuntimeError):  # the app's loop has ended
        on_gone()
    time.sleep(_GRACE_SECONDS)  # the app ends earlier unless it hangs
    leave(HUNG_UP)


def _is_there(terminal: int) -> bool:
    try:
        termios.tcgetattr(terminal)
    except termios.error:
        return False
    return True
