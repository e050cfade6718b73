"""Commands for the message that is being written."""

from __future__ import annotations

from macllm.chat import attachments
from macllm.chat.session import Session
from macllm.errors import UsageError

from ..outcomes import Attach, OpenEditor, Outcome, Shorten
from ..text.paths import paths
from .command import Command


def _attach(argument: str) -> Outcome:
    name = argument.strip("\"'")
    if not name:
        raise UsageError("/attach needs a file or folder.", remedy="/attach notes.md, or @notes.md in a message")
    return Attach(attachments.read(name))


def _detach(argument: str) -> Outcome:
    if argument and not argument.isdecimal():
        raise UsageError("/detach takes a number of characters to keep, or nothing.", remedy="/detach, or /detach 2000")
    return Shorten(int(argument or 0))


def _paths(session: Session | None, argument: str) -> dict[str, str]:
    return {choice.path: "" for choice in paths(argument)}


COMMANDS = (
    Command("attach", "PATH", "attach a text file to the next message", run_without_model=_attach, values=_paths),
    Command(
        "detach",
        "[CHARACTERS]",
        "take the attachments off the message, or keep their first characters",
        run_without_model=_detach,
    ),
    Command("editor", "", "write the message in $VISUAL or $EDITOR", run_without_model=lambda _: OpenEditor()),
)
