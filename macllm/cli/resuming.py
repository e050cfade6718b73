"""The stored conversation that a chat goes on with, chosen by flags."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import MacllmError, ModelNotFoundError, UsageError
from macllm.units import date_text
from macllm.visible import one_line

from . import names
from .fetch import fetch
from .output import report, say

if TYPE_CHECKING:
    from macllm.chat.conversation import Conversation
    from macllm.chat.options import ChatOptions
    from macllm.chat.rows import StoredChat
    from macllm.chat.session import Session
    from macllm.chat.store import Store

NEWEST = ""  # value of --resume without an id
_OFFERED = 20


def resume_options(function: Any) -> Any:
    """Add --continue, --resume, --fork and --temporary."""
    for option in (
        click.option("--temporary", is_flag=True, help="Do not store the conversation."),
        click.option(
            "--fork",
            metavar="ID[:MESSAGE]",
            shell_complete=names.chats,
            help="Go on with a copy, up to a message (its number or id).",
        ),
        click.option(
            "--resume",
            metavar="[ID]",
            shell_complete=names.chats,
            is_flag=False,
            flag_value=NEWEST,
            help="Go on with a conversation.",
        ),
        click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the newest conversation."),
    ):
        function = option(function)
    return function


def resumed(options: ChatOptions, goes_on: bool, resume: str | None, fork: str | None) -> ChatOptions:
    """The options with the conversation that the flags name, and with its model unless another is given.

    Raises: UsageError for two flags at once, and for an unknown conversation or message.
    """
    if goes_on + (resume is not None) + (fork is not None) > 1:
        raise UsageError("--continue, --resume and --fork exclude each other", remedy="one of them")
    if not goes_on and resume is None and fork is None:
        return options
    from macllm.chat.store import Store

    conversation = _chosen(Store(), resume, fork)
    choice = conversation.model_choice
    options = replace(options, conversation=conversation)
    if choice is not None and options.model is None:
        options = replace(options, model=choice.model, adapter=options.adapter or choice.adapter)
    return options


def _chosen(store: Store, resume: str | None, fork: str | None) -> Conversation:
    if fork is not None:
        from macllm.chat.archive import find_message

        chat, _, message = fork.partition(":")
        conversation = store.load(chat)
        return conversation.forked(find_message(conversation, message) if message else None)
    if resume:
        return store.load(resume)
    chats = store.list(_OFFERED)
    if not chats:
        raise UsageError("no conversation is stored yet", remedy="macllm chat")
    return store.load(chats[0].id if resume is None else _picked(store, chats))


def _picked(store: Store, chats: list[StoredChat]) -> str:
    """The id of the conversation that the user picks by its number."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("--resume needs an ID without a terminal", remedy=f"macllm chat --resume {chats[0].id}")
    ids = store.short_ids()
    for number, chat in enumerate(chats, 1):
        say(f"{number:>3}  {ids.get(chat.id, chat.id)}  {date_text(chat.updated)}  {one_line(chat.name)}")
    number = click.prompt("conversation", default=1, type=click.IntRange(1, len(chats)), err=True)
    return chats[number - 1].id


def fetched(options: ChatOptions, asked: str | None) -> ChatOptions:
    """The options with full paths in place of folders, after the model is downloaded if needed.

    Conversations record them, and are resumed in other folders. Raises: ModelNotFoundError, for a recorded model
    with a way to take another.
    """
    from macllm.hub.blend import renamed
    from macllm.hub.names import local_folder

    try:
        fetch(options.model)
    except ModelNotFoundError as error:
        if asked is not None or options.conversation is None:
            raise
        raise ModelNotFoundError(
            f"the model of this conversation is missing: {options.model}",
            cause=error.message,
            remedy=f"macllm chat --resume {options.conversation.id} --model NAME",
        ) from error
    folder = local_folder(options.model) if options.model else None
    return replace(
        options,
        model=str(folder) if folder else options.model,
        adapter=renamed(options.adapter, _absolute) if options.adapter else options.adapter,
    )


def _absolute(name: str) -> str:
    """The full path of a folder; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_dir() else name


def say_resume_line(sessions: list[Session], prompt: str | None) -> None:
    """Say the command that resumes a conversation on a terminal, and report what is not stored.

    A single answer for a pipe gets no such line; macllm chat --continue goes on with it all the same.
    """
    from macllm.chat.store import Store

    session = sessions[-1] if sessions else None
    if session is None or not isinstance(session.journal, Store):
        return
    store = session.journal
    store.close()
    if store.unsaved is not None:
        report(store.unsaved)
    elif session.conversation.nodes and _is_conversation(prompt):
        try:
            say(f"resume: macllm chat --resume {store.short(session.conversation.id)}")
        except MacllmError as error:
            report(error)


def _is_conversation(prompt: str | None) -> bool:
    """True if a person types on a terminal, after the first message too."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    stdin, stdout, stderr = (stream is not None and not stream.closed and stream.isatty() for stream in streams)
    return stdin and stderr and (stdout or not prompt)
