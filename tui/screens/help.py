"""The help: commands and keys, over the chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding

from ..keys import help_lines
from ..slash import COMMANDS
from .overlay import Overlay, Row


class HelpScreen(Overlay):
    """Commands and keys. Enter takes a command; Esc, F1 and, before any typing, q close it."""

    BINDINGS: ClassVar = [Binding("f1", "back", show=False), Binding("q", "back", show=False, priority=True)]
    LETTER_KEYS: ClassVar = frozenset({"q"})
    TITLE_TEXT: ClassVar = "Help"
    KEYS_TEXT: ClassVar = "↑ ↓ move · Enter takes a command · Esc closes"

    def rows(self, typed: str) -> Sequence[Row]:
        """Commands, then keys, that contain the typed text."""
        return [row for row in help_rows() if typed.lower() in f"{row.label} {row.about}".lower()]


def help_rows() -> list[Row]:
    """A row for each command, which is its value, and for each key."""
    commands = [Row(command.usage, command.help, f"/{command.name} ", "Commands") for command in COMMANDS.values()]
    return commands + [Row(keys, about, group="Keys") for keys, about in help_lines()]
