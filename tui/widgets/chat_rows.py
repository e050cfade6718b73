"""Stored conversations as rows of a list."""

from __future__ import annotations

import time
from collections.abc import Sequence

from macllm.chat.rows import StoredChat
from macllm.units import count_text

from ..text.days import clock_text, day_text
from .row_list import Row

RESUME = "/resume "  # the command of a row, with the conversation's id


def chat_rows(found: Sequence[tuple[StoredChat, str]], current: str, *, brief: bool = False) -> list[Row]:
    """Rows by day of conversations and the places that a search found in them.

    `current` is the id of the open one. A brief row has the number of messages alone beside the name.
    """
    now = time.time()
    digits = max((len(count_text(chat.messages)) for chat, _ in found), default=0)
    none = "  " if brief or any(chat.id == current for chat, _ in found) else ""
    return [
        Row(
            label=("● " if chat.id == current else none) + (chat.name or "(no text)"),
            about=count_text(chat.messages).rjust(digits) if brief else _about(chat),
            value=RESUME + chat.id,
            group=day_text(chat.updated, now),
            detail="" if snippet in ("", chat.name) else none + snippet,
        )
        for chat, snippet in found
    ]


def messages_text(number: int) -> str:
    """A number of messages."""
    return f"{count_text(number)} message{'s' * (number != 1)}"


def nothing_text(typed: str) -> str:
    """The text in place of rows."""
    return f"no conversation has “{typed}”" if typed else "no conversations yet; they are stored as you chat"


def _about(chat: StoredChat) -> str:
    return f"{clock_text(chat.updated)} · {messages_text(chat.messages)}"
