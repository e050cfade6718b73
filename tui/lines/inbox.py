"""Messages from the threads that load the model and iterate an answer."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable

from macllm.generation.contract import Status

from ..messages import EngineStatus, ThreadMessage

_LISTEN_SECONDS = 0.2


class Inbox:
    """Queue of messages; `on_status` gets those about the engine."""

    def __init__(self, on_status: Callable[[Status], object]) -> None:
        self._messages: queue.SimpleQueue[ThreadMessage] = queue.SimpleQueue()
        self._on_status = on_status
        self.put = self._messages.put

    def receive(
        self, timeout_seconds: float | None = None, on_silence: Callable[[], object] = lambda: None
    ) -> ThreadMessage | None:
        """The next message other than engine status; None after `timeout_seconds`.

        While it waits, `on_silence` is called every 0.2 s.
        """
        waited = 0.0
        while timeout_seconds is None or waited < timeout_seconds:
            with contextlib.suppress(queue.Empty):
                # With a timeout, because a signal that arrives just before `get` is handled only after `get` returns.
                message = self._messages.get(timeout=_LISTEN_SECONDS)
                if not isinstance(message, EngineStatus):
                    return message
                self._on_status(message.status)
                continue
            waited += _LISTEN_SECONDS
            on_silence()
        return None
