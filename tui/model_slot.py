"""The chat's model: loaded in the background, and exchanged for another. No Textual in here."""

from __future__ import annotations

from collections.abc import Callable

from macllm.chat.options import short_name
from macllm.chat.session import Session
from macllm.errors import MacllmError, UsageError
from macllm.generation.contract import OnStatus

from .messages import ThreadMessage
from .outcomes import Activate, SwitchModel
from .session_loader import SessionLoader

OpenModel = Callable[[str, str | None, OnStatus], Session]
"""Load a model, with an adapter if there is one."""


class ModelSlot:
    """At most one session. `post` gets the messages of loading in other threads."""

    def __init__(self, loader: SessionLoader, name: str, open_model: OpenModel | None = None) -> None:
        self.name = name
        self.session: Session | None = None
        self.failure: MacllmError | None = None
        self.former: Session | None = None  # while another model or adapter is loaded
        self._loading = ""  # its name
        self._loader = loader
        self._open_model = open_model

    @property
    def activity(self) -> str:
        """The state, unless there is a session."""
        if self.session is not None:
            return ""
        return "no model" if self.failure else f"loading {self._loading or self.name}…"

    def load(self, post: Callable[[ThreadMessage], object]) -> None:
        """Load the model, again after a failure."""
        self.failure = None
        self._loader.start(post)

    def change(self, change: SwitchModel | Activate, post: Callable[[ThreadMessage], object]) -> None:
        """Load another model or adapter for the conversation. Raises: UsageError if not possible now."""
        if isinstance(change, SwitchModel):
            self._switch(change.model, change.adapter, post)
        else:
            self._activate(change.adapter, post)

    def _switch(self, model: str, adapter: str | None, post: Callable[[ThreadMessage], object]) -> None:
        if (open_model := self._open_model) is None:
            raise UsageError("Another model needs a new chat here.", remedy=f"macllm chat --model {model}")
        if self.session is None and self.failure is None:
            raise UsageError("A model is being loaded.", remedy="wait until it is there")
        self.former, self.session = self.session or self.former, None
        self.name = short_name(model)
        self.failure = None
        self._loader.switch(lambda on_status: open_model(model, adapter, on_status), post)

    def _activate(self, adapter: str | None, post: Callable[[ThreadMessage], object]) -> None:
        """Make another adapter active. Meanwhile there is no session, so that messages wait."""
        if (session := self.session) is None:
            raise UsageError("A model is being loaded.", remedy="wait until it is there")
        self.former, self.session = session, None
        self._loading = short_name(adapter or "")
        self._loader.activate(session, adapter, post)

    def take(self, session: Session) -> None:
        """Use a loaded session, with the conversation of the former one."""
        if self.former is not None and self.former is not session:
            session.take_over(self.former)
        self.former, self._loading = None, ""
        self.session = session
        self.name = short_name(session.engine.info.model_name)

    @property
    def exit_code(self) -> int:
        """The exit code of the chat: that of a failure to load."""
        return self.failure.exit_code if self.failure is not None and self.session is None else 0
