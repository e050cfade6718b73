"""The help: commands and keys, over the chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding

from ..keymap import DEFAULTS, Keymap, keymap_of
from ..keys import help_lines
from ..slash import COMMANDS
from ..widgets.row_list import Row
from .overlay import Overlay

_KEY_CELLS = 9  # of Shift+Tab; more keys of one action push its description aside


class HelpScreen(Overlay):
    """Commands and keys. Enter takes a command; Esc, F1 and, before any typing, q close it."""

    BINDINGS: ClassVar = [
        Binding("f1", "back", show=False, id="chat.help"),
        Binding("q", "back", show=False, priority=True),
    ]
    LETTER_KEYS: ClassVar = frozenset({"q"})
    TITLE_TEXT: ClassVar = "Help"
    KEYS_TEXT: ClassVar = "↑ ↓ move · Enter take a command · Esc close"

    def rows(self, typed: str) -> Sequence[Row]:
        """Commands, then keys, that contain the typed text."""
        return [row for row in help_rows(keymap_of(self.app)) if typed.lower() in f"{row.label} {row.about}".lower()]


class KeysScreen(Overlay):
    """All keys with the names that the settings have for them."""

    TITLE_TEXT: ClassVar = "Keys"
    KEYS_TEXT: ClassVar = "change: macllm config set keys.stop ctrl+x · Esc close"

    def rows(self, typed: str) -> Sequence[Row]:
        """The keys whose name, keys or description contain the typed text."""
        keys = keymap_of(self.app).rows()
        return [
            Row(name, f"{shown:<{_KEY_CELLS}} {about}")
            for name, shown, about in keys
            if typed.lower() in f"{name} {shown} {about}".lower()
        ]


def help_rows(keymap: Keymap = DEFAULTS) -> list[Row]:
    """A row for each command, which is its value, and for each key of a keymap."""
    commands = [Row(command.usage, command.help, f"/{command.name} ", "Commands") for command in COMMANDS.values()]
    return commands + [Row(keys, about, group="Keys") for keys, about in help_lines(keymap.keys)]
