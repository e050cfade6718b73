"""A message of the model's threads on its way to a screen."""

from __future__ import annotations

from textual.message import Message

from ..messages import ThreadMessage


class FromThread(Message):
    """Wraps a message of the model's threads for the screen."""

    def __init__(self, message: ThreadMessage) -> None:
        super().__init__()
        self.message = message
