"""Slash commands: registry and parsing. No Textual in here.

The full screen and the line mode have the same commands. A line that starts with one slash is a command; two
slashes send a message that starts with one. A command changes the session and returns an `Outcome` for the
interface to carry out.
"""

from __future__ import annotations

import difflib

from macllm.errors import UsageError

from .commands import context, conversation, copying, interface, models, presets, prompt, settings, storage, versions
from .commands.command import Command

TOPICS = (conversation, versions, context, storage, prompt, models, copying, settings, presets, interface)
COMMANDS = {command.name: command for topic in TOPICS for command in topic.COMMANDS}
NAMES = {name: command for command in COMMANDS.values() for name in command.names}


def parse(line: str) -> tuple[Command, str] | None:
    """(command, argument), or None if the line is text to send. Raises: UsageError for an unknown command."""
    if not line.startswith("/") or line.startswith("//") or "\n" in line.strip():
        return None
    name, _, argument = line[1:].strip().partition(" ")
    if "/" in name:  # a path such as /usr/lib is text
        return None
    if (command := NAMES.get(name.lower())) is not None:
        return command, argument.strip()
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
    remedy = NAMES[near[0]].usage if near else "/help lists the commands"
    raise UsageError(f"Unknown command /{name}.", remedy=f"{remedy}; two slashes send it as text")


def plain_text(line: str) -> str:
    """The text to send for a line: two leading slashes become one."""
    return line[1:] if line.startswith("//") else line


def as_typed(text: str) -> str:
    """The line that sends a text: a slash comes before one that would be a command."""
    command = text.startswith("/") and "\n" not in text.strip() and "/" not in text[1:].strip().partition(" ")[0]
    return f"/{text}" if command or text.startswith("//") else text
