"""The model of a chat in lines: loaded while the user waits, and exchanged for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from macllm.chat.options import ChatOptions
from macllm.chat.session import Session
from macllm.errors import MacllmError
from macllm.generation.contract import OnStatus

from .loading import Loading
from .narrator import Narrator

Opener = Callable[[ChatOptions, OnStatus], Session]


class LineModel:
    """At most one session. `former` is the closed one whose conversation the next session goes on with."""

    def __init__(self, options: ChatOptions, opener: Opener, narrator: Narrator) -> None:
        self.options = options
        self.session: Session | None = None
        self.former: Session | None = None
        self.failure: MacllmError | None = None
        self.loading = Loading(narrator)
        self._opener = opener

    def load(self) -> Session:
        """Load the model, again after a failure. Raises: MacllmError."""
        options = self.options
        self.loading.start(options.model_name, lambda on_status: self._opener(options, on_status))
        try:
            session = self.loading.wait()
        except MacllmError as error:
            self.failure = error
            raise
        if self.former is not None:
            session.take_over(self.former)
        self.session, self.former, self.failure = session, None, None
        return session

    def switch(self, model: str, adapter: str | None) -> Session:
        """Close the session, and load another model for its conversation. Raises: MacllmError."""
        self.former, self.session = self.session or self.former, None
        conversation = None if self.former else self.options.conversation
        self.options = replace(self.options, model=model, adapter=adapter, conversation=conversation)
        return self.load()

    @property
    def exit_code(self) -> int:
        """The exit code of the chat: that of a failure to load."""
        return self.failure.exit_code if self.failure is not None and self.session is None else 0
