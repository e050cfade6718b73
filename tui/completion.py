"""Choices that complete the prompt: commands, their arguments, and files. No Textual in here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from macllm.chat.attachments import reference
from macllm.chat.session import Session

from . import slash
from .text.matching import Positions, ranked
from .text.paths import paths

_TYPED_NAME = re.compile(r"/([A-Za-z-]*)")
_TYPED_ARGUMENT = re.compile(r"/([A-Za-z-]+)\s+(.*)")
_TYPED_PATH = re.compile(r"""(?<![^\s(\["'])@("[^"\n]*|[^\s"@]*)$""")


@dataclass(frozen=True)
class MenuItem:
    """A choice of a menu: `label` and `detail` are shown, `text` goes into the prompt.

    With a `path`, the marker of that file does.
    """

    text: str
    label: str
    detail: str = ""
    positions: Positions = ()  # of the match in the label
    path: str = ""


@dataclass(frozen=True)
class Menu:
    """Choices for the text from `start` to `end`. `is_whole`: the typed text can be sent as it is."""

    items: tuple[MenuItem, ...]
    start: int
    end: int
    is_whole: bool = False
    selected: int = 0
    is_moved: bool = False
    title: str = ""

    @property
    def item(self) -> MenuItem | None:
        """The selected choice; None in an empty menu."""
        return self.items[self.selected] if self.items else None

    @property
    def takes_enter(self) -> bool:
        """True if Enter takes the selected choice instead of sending the prompt."""
        return bool(self.items) and (self.is_moved or not self.is_whole)

    def moved(self, steps: int) -> Menu:
        """With another choice selected; the first follows the last."""
        return replace(self, selected=(self.selected + steps) % len(self.items), is_moved=True) if self.items else self


def complete(text: str, cursor: int, session: Session | None = None, folder: Path | None = None) -> Menu | None:
    """The menu for a text with the cursor at an index; None if nothing completes it."""
    if text.startswith("/") and "\n" not in text:
        return _command(text, cursor) or _argument(text, cursor, session)
    return _file(text, cursor, folder)


def _command(text: str, cursor: int) -> Menu | None:
    typed = _TYPED_NAME.fullmatch(text[:cursor])
    end = _TYPED_NAME.match(text)
    if typed is None or end is None or text[end.end() : end.end() + 1] == "/":
        return None
    name = typed[1].lower()
    names = [(each, command) for command in slash.COMMANDS.values() for each in command.names]
    best: dict[str, MenuItem] = {}
    for (found, command), positions in ranked(name, names, lambda each: each[0]):
        label = found + command.usage.removeprefix(f"/{command.name}")
        space = " " if command.argument and not text[end.end() :] else ""
        shown = tuple(position + 1 for position in positions)
        best.setdefault(command.name, MenuItem(f"/{found}{space}", f"/{label}", command.help, shown))
    is_whole = any(name == each for each, _ in names)
    return Menu(tuple(best.values()), 0, end.end(), is_whole) if best else None


def _argument(text: str, cursor: int, session: Session | None) -> Menu | None:
    typed = _TYPED_ARGUMENT.fullmatch(text[:cursor])
    command = slash.NAMES.get(typed[1].lower()) if typed else None
    if typed is None or command is None or command.values is None:
        return None
    argument = typed[2]
    values = command.values(session, argument)
    # A path or the name of a model is not to become another one by its letters
    found = ranked(argument, values, lambda each: each, fuzzy="/" not in argument)
    items = tuple(MenuItem(value, value.rstrip(), values[value], positions) for value, positions in found)
    is_whole = (
        argument.endswith("/")
        or argument.rstrip() in {value.rstrip() for value in values}
        or (not argument and command.argument.startswith("["))
    )
    return Menu(items, typed.start(2), len(text), is_whole) if items else None


def _file(text: str, cursor: int, folder: Path | None) -> Menu | None:
    typed = _TYPED_PATH.search(text[:cursor])
    if typed is None:
        return None
    path = typed[1].removeprefix('"')
    found = paths(path, folder)
    if not found:
        return None
    items = tuple(
        MenuItem(_named(each.path), each.name, "", each.positions, "" if each.is_folder else each.path)
        for each in found
    )
    is_whole = path == "" or path.endswith("/") or path in [each.path for each in found]
    end = cursor + (typed[1].startswith('"') and text[cursor : cursor + 1] == '"')
    return Menu(items, typed.start(), end, is_whole)


def _named(path: str) -> str:
    """The text for a path; that of a folder stays open for its files."""
    named = reference(path)
    return named.removesuffix('"') if path.endswith("/") else named
