"""A text area with folded texts, whose markers are one character for the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.text import Text
from textual.document._document import Location
from textual.widgets import TextArea

from ..text.folds import Folds

_Finder = Callable[[str, int], tuple[int, int] | None]


class FoldingArea(TextArea):
    """Text area that moves over a marker and deletes it as a unit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.folds = Folds()

    def get_line(self, line_index: int) -> Text:
        """A line as it is drawn: markers are bold."""
        line = super().get_line(line_index)
        for start, end in self.folds.spans(line.plain):
            line.stylize("bold", start, end)
        return line

    @property
    def cursor_index(self) -> int:
        """The number of characters before the cursor."""
        row, column = self.cursor_location
        return sum(len(line) + 1 for line in self.document.lines[:row]) + column

    def location(self, index: int) -> Location:
        """The location after a number of characters."""
        before = self.text[:index]
        return before.count("\n"), index - before.rfind("\n") - 1

    def action_delete_left(self) -> None:
        """Delete the selection, the marker or the character before the cursor."""
        if not self._delete_marker(self.folds.before):
            super().action_delete_left()

    def action_delete_right(self) -> None:
        """Delete the selection, the marker or the character after the cursor."""
        if not self._delete_marker(self.folds.after):
            super().action_delete_right()

    def action_delete_word_left(self) -> None:
        """Delete the selection, the marker or the word before the cursor."""
        if not self._delete_marker(self.folds.before):
            super().action_delete_word_left()

    def action_delete_word_right(self) -> None:
        """Delete the selection, the marker or the word after the cursor."""
        if not self._delete_marker(self.folds.after):
            super().action_delete_word_right()

    def get_cursor_left_location(self) -> Location:
        """The location before the marker or character before the cursor."""
        return self._beside_marker(self.folds.before, 0) or super().get_cursor_left_location()

    def get_cursor_right_location(self) -> Location:
        """The location after the marker or character after the cursor."""
        return self._beside_marker(self.folds.after, 1) or super().get_cursor_right_location()

    def get_cursor_word_left_location(self) -> Location:
        """The location before the marker or word before the cursor."""
        return self._beside_marker(self.folds.before, 0) or super().get_cursor_word_left_location()

    def get_cursor_word_right_location(self) -> Location:
        """The location after the marker or word after the cursor."""
        return self._beside_marker(self.folds.after, 1) or super().get_cursor_word_right_location()

    def _beside_marker(self, find: _Finder, side: int) -> Location | None:
        span = find(self.text, self.cursor_index)
        return None if span is None else self.location(span[side])

    def _delete_marker(self, find: _Finder) -> bool:
        span = find(self.text, self.cursor_index) if self.selection.is_empty else None
        if span is None:
            return False
        start, end = map(self.location, span)
        self.delete(start, end, maintain_selection_offset=False)
        return True
