"""Entries of the command palette. No Textual in here."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from macllm.chat.models import usable_models
from macllm.chat.store import Store
from macllm.errors import MacllmError

from . import slash
from .commands.command import Command
from .keymap import DEFAULTS, Keymap
from .text.matching import Positions, ranked

_RECENT_CHATS = 8
_NOT_HERE = ("stop", "interrupt", "leave", "palette", "help", "chats", "new", "page_up", "blocks")


@dataclass(frozen=True)
class PaletteEntry:
    """A choice of the palette: a slash command, or `action:` with the name of an action of the chat."""

    label: str
    about: str
    value: str
    group: str


def command_entries(keymap: Keymap = DEFAULTS) -> list[PaletteEntry]:
    """Commands, then keys' actions."""
    found = [_command(command) for command in slash.COMMANDS.values()]
    return found + [
        PaletteEntry(key.help, key.shown, f"action:{key.action}", "Keys")
        for key in keymap.keys["chat"]
        if key.shown and key.id not in _NOT_HERE
    ]


def stored_entries(store: Store) -> list[PaletteEntry]:
    """The newest chats and the usable models, from the disk."""
    found: list[PaletteEntry] = []
    with suppress(MacllmError):  # their own screens show the errors
        chats = store.list(_RECENT_CHATS)
        found += [PaletteEntry(chat.name, "", f"/resume {chat.id}", "Recent chats") for chat in chats if chat.name]
    with suppress(MacllmError):
        models = [each for each in usable_models() if each.kind != "catalogue" and each.problem is None]
        commands = ["/adapter" if each.kind == "adapter" else "/model" for each in models]
        found += [
            PaletteEntry(f"{command} {each.title}", each.kind, f"{command} {each.name}", "Models and adapters")
            for command, each in zip(commands, models, strict=True)
        ]
    return found


def matching(found: Iterable[PaletteEntry], typed: str) -> list[tuple[PaletteEntry, Positions]]:
    """The entries that match the typed text, best first; then those that have it in their description."""
    all_entries = list(found)
    if not typed:
        return [(entry, ()) for entry in all_entries]
    best = ranked(typed, all_entries, lambda entry: entry.label)
    known = {entry for entry, _ in best}
    rest = [entry for entry in all_entries if entry not in known and typed.lower() in entry.about.lower()]
    return best + [(entry, ()) for entry in rest]


def _command(command: Command) -> PaletteEntry:
    """One that takes an argument waits for it in the prompt."""
    return PaletteEntry(command.usage, command.help, f"/{command.name}{' ' * bool(command.argument)}", "Commands")
