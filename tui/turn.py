"""A thread that pulls the events of one answer, so that nobody who draws or reads keys waits for a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from macllm.errors import MacllmError
from macllm.generation.request import Event, Events


class TurnThread(threading.Thread):
    """Hands every event to `on_event` and then calls `on_end` once, with the error or None. Both in this thread."""

    def __init__(
        self,
        events: Events,
        on_event: Callable[[Event], object],
        on_end: Callable[[MacllmError | None], object],
    ) -> None:
        # A daemon, because a model that hangs must not keep the program from ending.
        super().__init__(name="macllm-turn", daemon=True)
        self._events = events
        self._on_event = on_event
        self._on_end = on_end

    def run(self) -> None:
        """Pull until the events end."""
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
    """An error that nobody foresaw, told like the others instead of as a traceback over the screen."""
    return MacllmError(
        message,
        cause=f"{type(error).__name__}: {error}".rstrip(": "),
        remedy="once more; if it happens again, please report it",
    )
