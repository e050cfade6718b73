"""Questions of rows, which a model answers anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from macllm.errors import DataError
from macllm.text.messages import read_messages
from macllm.train.rows import Chat, Messages, Row


@dataclass(frozen=True)
class AskedQuestion:
    """The messages up to an answer, and the last of them as text."""

    messages: Messages
    where: str

    @property
    def text(self) -> str:
        """The question in words: what the user said last."""
        return str(self.messages[-1]["content"])


def questions(rows: Iterable[Row]) -> list[AskedQuestion]:
    """The prompt of each row; of a conversation its messages up to the last one of the user.

    Raises DataError for a row without a prompt.
    """
    return [AskedQuestion(_messages(row), row.where) for row in rows]


def _messages(row: Row) -> Messages:
    prompt: Any = row.messages if isinstance(row, Chat) else getattr(row, "prompt", "")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages or not messages[-1]["content"]:
        raise DataError(
            f"{row.where} has no question", cause=f"it is a row of kind {row.kind}", remedy='rows of {"prompt": ...}'
        )
    return read_messages(messages)
