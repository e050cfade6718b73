"""Loading of the model, with its narration."""

from __future__ import annotations

from collections.abc import Callable

from macllm.chat.session import Session
from macllm.generation.contract import OnStatus, Status

from ..messages import ModelFailed, ModelReady
from ..session_loader import SessionLoader
from .inbox import Inbox
from .narrator import Narrator

_LOADING_SECONDS = 1.5  # a line says that the model is loaded only if it takes longer


class Loading:
    """Loads one session at a time. `inbox` gets the messages of its threads."""

    def __init__(self, narrator: Narrator) -> None:
        self.inbox = Inbox(self._show_status)
        self._narrator = narrator
        self._loader: SessionLoader | None = None
        self._name = ""
        self._loaded = False
        self._status_logged = False

    def start(self, name: str, open_session: Callable[[OnStatus], Session]) -> None:
        """Begin to load a session; the former one is closed first."""
        self.close()
        self._name, self._loaded = name, False
        self._narrator.show(f"loading {name}…")
        loader = self._loader = SessionLoader(open_session)
        loader.start(lambda message: self.inbox.put(message) if loader is self._loader else None)

    def wait(self) -> Session:
        """The session. Raises: MacllmError if it cannot be opened."""
        try:
            message = self.inbox.receive(_LOADING_SECONDS)
            if message is None and not self._narrator.redraws:
                self._narrator.remark(f"loading {self._name}")
            message = message or self.inbox.receive()
        finally:
            self._narrator.clear()
        if isinstance(message, ModelFailed):
            raise message.error
        assert isinstance(message, ModelReady)
        self._loaded = True
        return message.session

    def close(self) -> None:
        """Close the session, and wait for its engine to end."""
        loader, self._loader = self._loader, None
        if loader is not None:
            loader.close()

    def _show_status(self, status: Status) -> None:
        if not status.transient:
            self._narrator.say(status.text)
        elif self._loaded:
            return  # the answer is being written to the only line
        elif not status.text:
            self._narrator.clear()
        elif self._narrator.redraws:
            self._narrator.show(status.text)
        elif not self._status_logged:
            self._status_logged = True  # where nothing can be redrawn, only the first transient status is shown
            self._narrator.remark(status.text)
