"""A list over the chat, filtered by typing: the base of help, palette and chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalGroup
from textual.content import Content
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from macllm.visible import visible

_STACKED_BELOW = 56  # cells; in a narrower list the description stands below its row
_GAP = 3
_MARK = "› "


@dataclass(frozen=True)
class Row:
    """A row of a list. `value` is what choosing it gives; None: it cannot be chosen.

    `group` is the title above the first row of a group, `positions` are matched characters of the label.
    """

    label: str
    about: str = ""
    value: str | None = None
    group: str = ""
    detail: str = ""  # a second line
    positions: tuple[int, ...] = ()


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
    KEYS_TEXT: ClassVar = "Enter chooses · Esc closes"
    NOTHING: ClassVar = "nothing matches"
    LABEL_SHARE: ClassVar = 0.42  # of the width, at most
    SHORTENS: ClassVar = False  # longer labels; else their descriptions stand below them

    def __init__(self, typed: str = "") -> None:
        super().__init__()
        self._first_typed = typed
        self._rows: list[Row] = []  # by option; a row without a label is the title of a group
        self._marked: int | None = None

    def rows(self, typed: str) -> Sequence[Row]:
        """The rows for the text in the filter."""
        return []

    def compose(self) -> ComposeResult:
        """Title, filter, list and keys."""
        with VerticalGroup(id="overlay"):
            with Horizontal(id="overlay-head"):
                yield Static(self.TITLE_TEXT, id="overlay-title", markup=False)
                yield Filter(self._first_typed, placeholder=self.PLACEHOLDER, screen_keys=self.LETTER_KEYS)
            yield OptionList(id="rows", markup=False, compact=True)
            yield Static(self.KEYS_TEXT, id="overlay-keys", markup=False)

    def on_mount(self) -> None:
        """Focus the filter, and show all rows."""
        self.filter.focus()
        self.refresh_rows()

    @property
    def filter(self) -> Input:
        """The field for the filter."""
        return self.query_one("#filter", Input)

    @property
    def list(self) -> OptionList:
        """The rows on the screen."""
        return self.query_one("#rows", OptionList)

    @property
    def chosen(self) -> Row | None:
        """The highlighted row."""
        at = self.list.highlighted
        return self._rows[at] if at is not None and at < len(self._rows) else None

    def refresh_rows(self) -> None:
        """Show the rows for the filter, the first one highlighted."""
        self.show_rows(self.rows(self.filter.value.strip()))

    def show_rows(self, rows: Sequence[Row], highlighted: int = 0) -> None:
        """Show rows under the titles of their groups."""
        self._rows = []
        group = ""
        for row in rows:
            if row.group and row.group != group:
                group = row.group
                self._rows.append(Row("", group=group))
            self._rows.append(row)
        self._draw()
        self._highlight(highlighted, 1)

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
        """Move the mark to the highlighted row."""
        event.stop()
        self._mark(event.option_index)

    def on_resize(self, event: Resize) -> None:
        """Draw the rows for the new width."""
        self.call_after_refresh(self._draw)

    def choose(self) -> None:
        """Close with the value of the highlighted row."""
        if (row := self.chosen) is not None and row.value is not None:
            self.dismiss(row.value)

    def action_back(self) -> None:
        """Close."""
        self.dismiss(None)

    def action_move(self, direction: int) -> None:
        """Highlight the next row."""
        at = self.list.highlighted
        self._highlight(0 if at is None else at + direction, direction)

    def action_page(self, direction: int) -> None:
        """Move by the rows on the screen."""
        at = self.list.highlighted or 0
        page = max(self.list.size.height - 2, 1)
        last = len(self._rows) - 1
        self._highlight(min(max(at + direction * page, 0), max(last, 0)), direction)

    def _highlight(self, at: int, direction: int) -> None:
        """Highlight the option, or the next one that is no title."""
        while 0 <= at < len(self._rows) and not self._rows[at].label:
            at += direction
        if 0 <= at < len(self._rows):
            self.list.highlighted = at
        if self.list.highlighted is not None and self.list.highlighted <= 1:
            self.list.scroll_home(animate=False)  # shows the title above the first row

    def _draw(self) -> None:
        highlighted = self.list.highlighted
        prompts = [self._drawn(number) for number in range(len(self._rows))]
        options = [Option(each, disabled=not row.label) for each, row in zip(prompts, self._rows, strict=True)]
        self._marked = None
        self.list.set_options(options or [Option(Content.styled(self.NOTHING, "$muted"), disabled=True)])
        if highlighted is not None and highlighted < len(options):
            self.list.highlighted = highlighted
            self._mark(highlighted)

    def _mark(self, at: int) -> None:
        before, self._marked = self._marked, at
        for number in {before, at} - {None}:
            if number is not None and number < len(self._rows):
                self.list.replace_option_prompt_at_index(number, self._drawn(number))

    def _drawn(self, number: int) -> Content:
        row = self._rows[number]
        if not row.label:
            return Content.styled("\n" * (number > 0) + row.group, "bold $accent")
        width = (self.list.scrollable_content_region.width or 60) - len(_MARK)
        widest = max(len(row.label) for row in self._rows)
        lines = _lines(row, width, min(widest, int(width * self.LABEL_SHARE)), self.SHORTENS)
        first = _MARK if number == self._marked else " " * len(_MARK)
        return Content("\n").join(
            [Content.styled(" " * len(_MARK) if n else first, "bold $accent") + line for n, line in enumerate(lines)]
        )


def _lines(row: Row, width: int, label_width: int, shortens: bool) -> list[Content]:
    """One row, its description below the label if the list is narrow or the label stays long."""
    label = Content.styled(visible(row.label), "$foreground")
    for position in row.positions:
        label = label.stylize("bold $accent", position, position + 1)
    about = Content.styled(visible(row.about), "$muted")
    if width < _STACKED_BELOW:
        lines = [label.truncate(width, ellipsis=True)]
        lines += [Content("  ") + line for line in about.wrap(max(width - 2, 8))] if row.about else []
    else:
        column = label_width + _GAP
        label = label.truncate(label_width, ellipsis=True) if shortens else label
        below = about.wrap(max(width - column, 8)) if row.about else []
        lines = [label.truncate(width, ellipsis=True)]
        if below and label.cell_length <= label_width:
            lines = [label.pad_right(column - label.cell_length) + below.pop(0)]
        lines += [Content(" " * column) + line for line in below]
    if row.detail:
        detail = Content.styled("  " + visible(row.detail), "$muted")
        lines.append(detail.truncate(width, ellipsis=True))
    return lines
