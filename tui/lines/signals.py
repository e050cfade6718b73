"""Signals that end the program."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Convert SIGTERM and SIGHUP inside the block to SystemExit with code 143 or 129."""

    def terminate(number: int, frame: object) -> None:
        leave_closed_terminal()
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, terminate) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def leave_closed_terminal() -> None:
    """Send to /dev/null what would go to a closed terminal.

    Python exits with code 120 if its last writing fails.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or not a file
            number = stream.fileno()
            try:
                termios.tcgetattr(number)
            except termios.error as error:
                if error.args[0] == errno.EIO:
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, number)
                    os.close(null)
