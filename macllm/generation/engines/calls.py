"""Calls to the thread that owns a model, and the events that come back. No MLX in here."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from macllm.errors import UsageError

from ..request import Done, Event, Request


@dataclass(frozen=True, eq=False)
class EngineCall:
    """A call to the model's owner.

    `run` (with a request) sends the events of each step as one message; `info` and `activate` (with an adapter) send
    the model's facts. Each may send an exception. `renew` sends nothing: it reloads the model once kernels are
    compiled.
    """

    method: Literal["info", "run", "activate", "renew"]
    argument: Request | str | None = None
    send: Callable[[Any], object] = lambda message: None
    cancelled: threading.Event = field(default_factory=threading.Event)


Calls = queue.SimpleQueue[EngineCall | None]
"""Calls in order; None ends the owner."""

Messages = queue.SimpleQueue[Any]
"""Answers to one call in order."""


def receive(messages: Messages) -> Any:
    """Wait for the next message. Raises it if it is an exception."""
    message = messages.get()
    if isinstance(message, BaseException):
        raise message
    return message


class EventStream:
    """Events of one completion (a `contract.CompletionEvents`); a message holds the events of a step."""

    def __init__(self, messages: Messages, cancel: Callable[[], object]) -> None:
        self._messages, self._cancel = messages, cancel
        self._ready: deque[Event] = deque()
        self._over = False

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        try:
            while not self._ready:
                step: Sequence[Event] = receive(self._messages)
                self._ready.extend(step)
        except KeyboardInterrupt:
            raise
        except BaseException:
            self._over = True
            raise
        event = self._ready.popleft()
        self._over = isinstance(event, Done)
        return event

    def cancel(self) -> None:
        """Stop this completion after its current step; its events then end with Done("cancelled")."""
        if not self._over:
            self._cancel()

    def close(self) -> None:
        """Stop after the current step and drop unread events; the prefix cache keeps their tokens."""
        if not self._over:
            self._over = True
            self._cancel()

    def __del__(self) -> None:
        self.close()


def closed_error() -> UsageError:
    """Error of a call to a closed engine."""
    return UsageError("the engine is closed", remedy="make a new one")
