"""The menu above the prompt: completions, or the history while it is searched."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from ..completion import Menu, MenuItem

_MOST_ROWS = 8
_FEWEST_ROWS = 2
_REST = 10  # rows that the menu leaves to the rest of the screen
_GAP = 3
_LABEL_SHARE = 0.35  # of the width; longer labels move their own details


@dataclass
class MenuItemClicked(Message):
    """The user clicked on a choice."""

    index: int


class CompletionMenu(Static):
    """A window of the choices around the selected one, in as many rows as the screen has room for."""

    def __init__(self) -> None:
        super().__init__(markup=False)
        self.menu: Menu | None = None
        self._first = 0

    def show(self, menu: Menu | None) -> None:
        """Draw a menu; None hides it."""
        self.menu = menu
        self.display = menu is not None
        if menu is not None:
            self.update(self._drawn(menu))

    def on_resize(self) -> None:
        """Draw again, because the rows are cut to the width."""
        self.show(self.menu)

    def on_click(self, event: events.Click) -> None:
        """Choose the row."""
        offset = event.get_content_offset(self)
        if self.menu is not None and offset is not None:
            index = self._first + offset.y
            if index < min(len(self.menu.items), self._first + self._rows):
                self.post_message(MenuItemClicked(index))

    @property
    def _rows(self) -> int:
        return min(max(self.screen.size.height - _REST, _FEWEST_ROWS), _MOST_ROWS)

    def _drawn(self, menu: Menu) -> Content:
        rows = self._rows
        self._first = max(min(menu.selected - rows // 2, len(menu.items) - rows), 0)
        shown = menu.items[self._first : self._first + rows]
        room = max((self.content_size.width or self.screen.size.width) - 2, 1)
        widest = max((len(item.label) for item in menu.items), default=0)
        width = min(widest, int(room * _LABEL_SHARE))
        lines = [_line(item, self._first + number == menu.selected, width, room) for number, item in enumerate(shown)]
        below = " · ".join(
            filter(None, (menu.title, f"{menu.selected + 1}/{len(menu.items)}" if len(menu.items) > rows else ""))
        )
        if below:
            lines.append(Content.styled(f"  {below}"[: room + 2], "$muted"))
        return Content("\n").join(lines)


def _line(item: MenuItem, selected: bool, width: int, room: int) -> Content:
    label = Content(item.label if len(item.label) <= room else item.label[: room - 1] + "…")
    for position in item.positions:
        if position < min(len(item.label), room - 1):
            label = label.stylize("bold $accent", position, position + 1)
    label = label.stylize_before("$foreground")
    gap = max(width - label.cell_length, 0) + _GAP
    left = max(room - label.cell_length - gap, 0)
    detail = item.detail if len(item.detail) <= left else item.detail[: max(left - 1, 0)].rstrip() + "…" * (left > 0)
    line = Content.assemble("› " if selected else "  ", label, " " * gap * bool(detail), detail)
    return line.stylize_before("bold") if selected else line
