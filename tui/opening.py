"""Opening a session in a thread, and closing it whatever happens. No Textual in here."""

from __future__ import annotations

import threading
from collections.abc import Callable

from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.contract import Tell

from .turn import unexpected


class Opening:
    """Opens sessions in the background. After `close`, a session that is still being opened is closed as it arrives."""

    def __init__(self, open_session: Callable[[Tell], Session]) -> None:
        self._open_session = open_session
        self._session: Session | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(
        self, on_ready: Callable[[Session], object], on_failure: Callable[[MacllmError], object], on_news: Tell
    ) -> None:
        """Open one; one of the first two is called in the thread that did, the third in any, at any time."""
        arguments = (on_ready, on_failure, on_news)
        threading.Thread(target=self._run, args=arguments, name="macllm-open", daemon=True).start()

    def close(self) -> None:
        """Close what is open and whatever is still to come. May take as long as the engine takes to end."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def _run(
        self, on_ready: Callable[[Session], object], on_failure: Callable[[MacllmError], object], on_news: Tell
    ) -> None:
        try:
            session = self._open_session(on_news)
        except MacllmError as error:
            on_failure(error)
            return
        except Exception as error:
            on_failure(unexpected("The model could not be loaded.", error))
            return
        with self._lock:
            closed = self._closed
            self._session = None if closed else session
        if closed:
            session.close()
        else:
            on_ready(session)
