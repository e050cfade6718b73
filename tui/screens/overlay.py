"""A list over the chat, filtered by typing: the base of help, palette, chats and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalGroup
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from ..widgets.row_list import Row, RowList


class Filter(Input):
    """The field above a list. A key of its screen that is a letter works as long as the field is empty."""

    def __init__(self, value: str, *, placeholder: str, screen_keys: frozenset[str]) -> None:
        super().__init__(value, placeholder=placeholder, id="filter", compact=True)
        self._screen_keys = screen_keys

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """True for a key that is typed here."""
        return super().check_consume_key(key, character) and (bool(self.value) or key not in self._screen_keys)


class Overlay(ModalScreen[str | None]):
    """A titled list with a filter. Enter dismisses it with the row's value, Esc with None."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", show=False),
        # With priority like the letters, so that keys that come in a burst act in their order.
        Binding("up,ctrl+p", "move(-1)", show=False, priority=True),
        Binding("down,ctrl+n", "move(1)", show=False, priority=True),
        Binding("pageup", "page(-1)", show=False, priority=True),
        Binding("pagedown", "page(1)", show=False, priority=True),
    ]
    LETTER_KEYS: ClassVar[frozenset[str]] = frozenset()  # bindings with priority that are letters
    TITLE_TEXT: ClassVar = ""
    PLACEHOLDER: ClassVar = "type to filter"
    KEYS_TEXT: ClassVar = "Enter choose · Esc close"
    NOTHING: ClassVar = "nothing matches"
    LABEL_SHARE: ClassVar = 0.33  # of the width, at most
    SHORTENS: ClassVar = False  # longer labels; else their descriptions stand below them

    def __init__(self, typed: str = "") -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-normal")]
        self._first_typed = typed

    def rows(self, typed: str) -> Sequence[Row]:
        """The rows for the text in the filter."""
        return []

    def compose(self) -> ComposeResult:
        """Title, filter, list and keys."""
        with VerticalGroup(id="overlay"):
            with Horizontal(id="overlay-head"):
                yield Static(self.TITLE_TEXT, id="overlay-title", markup=False)
                yield Filter(self._first_typed, placeholder=self.PLACEHOLDER, screen_keys=self.LETTER_KEYS)
            yield self.new_list()
            yield Static(self.KEYS_TEXT, id="overlay-keys", markup=False)

    def new_list(self) -> RowList:
        """The list, without rows so far."""
        return RowList(nothing=self.NOTHING, label_share=self.LABEL_SHARE, shortens=self.SHORTENS)

    def on_mount(self) -> None:
        """Focus the filter, and show all rows."""
        self.filter.focus()
        self.refresh_rows()

    @property
    def filter(self) -> Input:
        """The field for the filter."""
        return self.query_one("#filter", Input)

    @property
    def list(self) -> RowList:
        """The rows on the screen."""
        return self.query_one(RowList)

    @property
    def is_open(self) -> bool:
        """False as soon as the screen closes, which removes its widgets before it cancels its workers."""
        return bool(self.query(RowList))

    @property
    def chosen(self) -> Row | None:
        """The highlighted row."""
        return self.list.chosen

    def refresh_rows(self) -> None:
        """Show the rows for the filter, the first one highlighted."""
        self.show_rows(self.rows(self.filter.value.strip()))

    def show_rows(self, rows: Sequence[Row], highlighted: int = 0) -> None:
        """Show rows under the titles of their groups."""
        self.list.show(rows, highlighted)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter."""
        event.stop()
        self.refresh_rows()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Choose the highlighted row."""
        event.stop()
        self.choose()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Choose the row that was clicked."""
        event.stop()
        self.choose()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Stop it here: the list has moved its mark."""
        event.stop()

    def on_resize(self, event: Resize) -> None:
        """Draw the rows for the new width."""
        self.call_after_refresh(self.list.draw)

    def choose(self) -> None:
        """Close with the value of the highlighted row."""
        if (row := self.chosen) is not None and row.value is not None:
            self.dismiss(row.value)

    def action_back(self) -> None:
        """Close."""
        self.dismiss(None)

    def action_move(self, direction: int) -> None:
        """Highlight the next row."""
        self.list.move(direction)

    def action_page(self, direction: int) -> None:
        """Move by the rows on the screen."""
        self.list.page(direction)
