"""Signals that end the program."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

TERMINATED = 143


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Convert SIGTERM to SystemExit with code 143 inside the block, so that it cleans up as after Ctrl-C."""

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
