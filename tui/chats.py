"""Stored conversations for the interface. No Textual in here."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from macllm.chat.rows import StoredChat
from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import UsageError

_LONGEST_NAME = 40  # characters of a file's name


def store_of(session: Session | None) -> Store:
    """The store that a session writes, or the user's store for one that writes none."""
    return session.journal if session is not None and isinstance(session.journal, Store) else Store()


def found(store: Store, typed: str, limit: int) -> list[tuple[StoredChat, str]]:
    """The conversations with all typed words and the place where they are, or all without one."""
    store.flush(1.0)
    if not typed:
        return [(chat, "") for chat in store.list(limit)]
    return [(hit.chat, " ".join(hit.snippet.split())) for hit in store.search(typed, limit)]


def rename(store: Store, session: Session | None, chat: str, title: str) -> None:
    """Name a stored conversation, which may be the current one."""
    if session is not None and session.conversation.id == chat:
        session.set_title(title)
    else:
        store.save(replace(store.load(chat), title=title))
    store.flush(1.0)


def remove(store: Store, session: Session | None, chat: str) -> None:
    """Remove a stored conversation. Raises: UsageError for the current one.

    Its next answer would store it again.
    """
    if session is not None and session.conversation.id == chat:
        raise UsageError("This conversation is open.", remedy="/new, then remove it")
    store.remove(chat)


def file_name(name: str) -> str:
    """A file's name for the export of a conversation."""
    return (re.sub(r"[^\w]+", "-", name.lower())[:_LONGEST_NAME].strip("-") or "conversation") + ".md"


def export(store: Store, chat: str, name: str) -> Path:
    """Write a conversation to a file that is not there yet; its name gives the format: md, json or html."""
    from macllm.chat.exports import export as text_of
    from macllm.chat.exports import format_of
    from macllm.chat.transcript import write

    path = Path(name).expanduser()
    write(path, text_of(store.load(chat), format_of(path)), overwrite=False)
    return path
