"""Worker thread that iterates an answer's events off the UI thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from macllm.errors import MacllmError
from macllm.generation.request import Event, Events


class TurnThread(threading.Thread):
    """Calls `on_event` with every event, then `on_end` once with the error or None; both in this thread."""

    def __init__(
        self,
        events: Events,
        on_event: Callable[[Event], object],
        on_end: Callable[[MacllmError | None], object],
    ) -> None:
        # A daemon: a model that hangs must not keep the program from ending.
        super().__init__(name="macllm-turn", daemon=True)
        self._events = events
        self._on_event = on_event
        self._on_end = on_end

    def run(self) -> None:
        """Iterate until the events end."""
        failure: MacllmError | None = None
        try:
            for event in self._events:
                self._on_event(event)
        except MacllmError as error:
            failure = error
        except Exception as error:
            failure = unexpected("The answer failed.", error)
        finally:
            with suppress(Exception):
                self._events.close()
        self._on_end(failure)


def unexpected(message: str, error: Exception) -> MacllmError:
    """A MacllmError for an unexpected exception, shown like any other error instead of as a traceback."""
    return MacllmError(
        message,
        cause=f"{type(error).__name__}: {error}".rstrip(": "),
        remedy="try again; if it fails again, please report it",
    )
