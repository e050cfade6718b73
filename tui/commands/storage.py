"""Commands for stored conversations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from macllm.chat.archive import find_message
from macllm.chat.exports import FORMATS, export, format_of
from macllm.chat.session import Session
from macllm.chat.transcript import write
from macllm.errors import MacllmError, UsageError
from macllm.units import date_text

from ..chats import store_of
from ..outcomes import Choice, Open, Outcome, Question, Redraw, Say
from .command import Command

_OFFERED = 20


def chats_question(session: Session, words: str = "") -> Question:
    """The newest conversations, or those with all `words`, to choose from.

    Raises: UsageError if there is none.
    """
    store = store_of(session)
    store.flush(1)
    found = [hit.chat for hit in store.search(words, _OFFERED)] if words else store.list(_OFFERED)
    if not found:
        if words:
            raise UsageError(f"No conversation has {words}.", remedy="other words, or /chats without any")
        raise UsageError("No conversation is stored yet.", remedy="write a message first")
    return Question(
        "Conversations, newest first:",
        tuple(Choice(f"{date_text(chat.updated)}  {chat.name}", f"/resume {chat.id}") for chat in found),
    )


def _chats(session: Session, argument: str) -> Outcome:
    return Open("chats", argument)


def _resume(session: Session, argument: str) -> Outcome:
    if not argument:
        return _chats(session, argument)
    store = store_of(session)
    store.flush(1)
    chat = store.find(argument)
    if chat == session.conversation.id:
        return Say("This conversation is open already.")
    session.open(store.load(chat))
    unstored = "" if store is session.journal else " This chat is temporary; what comes now is not stored."
    return Redraw(f"Resumed: {session.conversation.name}{unstored}")


def _fork(session: Session, argument: str) -> Outcome:
    conversation = session.conversation
    if not conversation.turns:
        raise UsageError("The conversation has no message yet.", remedy="write one first")
    session.open(conversation.forked(find_message(conversation, argument) if argument else None))
    return Redraw("A copy of the conversation; the old one stays as it is.")


def _rename(session: Session, argument: str) -> Outcome:
    if not argument:
        name = session.conversation.name
        return Say(f"This conversation is: {name}" if name else "The conversation has no name yet.")
    session.set_title(argument)
    return Say(f"Renamed: {argument}")


def _export(session: Session, argument: str) -> Outcome:
    words, form, force = argument.split(" "), None, False
    while len(words) > 1 and (words[0] in FORMATS or words[0] in ("--force", "")):
        word = words.pop(0)
        form, force = (word, force) if word in FORMATS else (form, force or word == "--force")
    name = " ".join(words).strip()
    if not name or name == "--force":
        raise UsageError("/export needs a file name.", remedy="/export chat.md, /export chat.html or /export chat.json")
    if not session.turns:
        raise UsageError("No conversation to export yet.", remedy="write a message first")
    path = Path(os.path.expandvars(name)).expanduser()
    write(path, export(session.conversation, form or format_of(path)), overwrite=force)
    return Say(f"Exported to {path}.")


def _stored(session: Session | None, argument: str) -> Mapping[str, str]:
    """The newest conversations, for completion."""
    store = store_of(session)
    try:
        ids = store.short_ids()
        return {ids.get(chat.id, chat.id): chat.name for chat in store.list(_OFFERED)}
    except MacllmError:
        return {}


COMMANDS = (
    Command("chats", "[WORDS]", "choose a stored conversation, or search them", _chats, idle=True),
    Command("resume", "[ID]", "go on with a stored conversation", _resume, idle=True, values=_stored),
    Command("fork", "[MESSAGE]", "go on with a copy, up to a message (its number or id)", _fork, idle=True),
    Command("rename", "[TITLE]", "name the conversation", _rename, idle=True),
    Command(
        "export", "[md | json | html] [--force] FILE", "write the conversation to a file", _export, aliases=("save",)
    ),
)
