"""Loading a session in a thread, and closing it. No Textual in here."""

from __future__ import annotations

import threading
from collections.abc import Callable

from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.contract import OnStatus

from .messages import EngineStatus, ModelFailed, ModelReady, ThreadMessage
from .turn import unexpected


class SessionLoader:
    """Loads sessions in the background. A session that arrives after `close` is closed at once."""

    def __init__(self, open_session: Callable[[OnStatus], Session]) -> None:
        self._open_session = open_session
        self._session: Session | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self, post: Callable[[ThreadMessage], object]) -> None:
        """Load a session in a new thread.

        `post` gets one ModelReady or ModelFailed in that thread, and EngineStatus in any thread at any time.
        """
        threading.Thread(target=self._run, args=(post,), name="macllm-open", daemon=True).start()

    def switch(self, open_session: Callable[[OnStatus], Session], post: Callable[[ThreadMessage], object]) -> None:
        """Close the session, then load another one; later starts load it, too."""
        self._open_session = open_session
        self.start(post)

    @staticmethod
    def activate(session: Session, adapter: str | None, post: Callable[[ThreadMessage], object]) -> None:
        """Make another adapter active in a new thread, in which `post` gets one ModelReady."""

        def run() -> None:
            error: MacllmError | None = None
            try:
                session.activate(adapter)
            except MacllmError as raised:
                error = raised
            except Exception as raised:
                error = unexpected("The adapter could not be loaded.", raised)
            post(ModelReady(session, error))

        threading.Thread(target=run, name="macllm-adapter", daemon=True).start()

    def close(self) -> None:
        """Close the session, or the one still loading when it is ready. Waits for the engine to end."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _run(self, post: Callable[[ThreadMessage], object]) -> None:
        try:
            with self._lock:
                former, self._session = self._session, None
            if former is not None:
                former.close()
            session = self._open_session(lambda status: post(EngineStatus(status)))
        except MacllmError as error:
            post(ModelFailed(error))
            return
        except Exception as error:
            post(ModelFailed(unexpected("The model could not be loaded.", error)))
            return
        with self._lock:
            closed = self._closed
            self._session = None if closed else session
        if closed:
            session.close()
        else:
            post(ModelReady(session))
