"""A list of rows in groups, one of them marked: in overlays and in the sidebar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content
from textual.widgets import OptionList
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


class RowList(OptionList):
    """Rows under the titles of their groups.

    `label_share` is the most of the width that labels take. Longer ones are cut if the list `shortens` them; else
    their descriptions stand below them. A list that is `brief` has short descriptions, all at its right edge.
    """

    def __init__(self, *, nothing: str, label_share: float = 0.33, shortens: bool = False, brief: bool = False) -> None:
        super().__init__(id="rows", markup=False, compact=True)
        self.nothing = nothing  # the text in place of rows
        self.rows: list[Row] = []  # by option; a row without a label is the title of a group
        self._label_share, self._shortens, self._brief = label_share, shortens, brief
        self._marked: int | None = None

    @property
    def chosen(self) -> Row | None:
        """The highlighted row."""
        at = self.highlighted
        return self.rows[at] if at is not None and at < len(self.rows) else None

    def show(self, rows: Sequence[Row], highlighted: int | None = 0) -> None:
        """Show rows under the titles of their groups."""
        self.rows = []
        group = ""
        for row in rows:
            if row.group and row.group != group:
                group = row.group
                self.rows.append(Row("", group=group))
            self.rows.append(row)
        if highlighted is None:
            self.highlighted = None
        self.draw()
        if highlighted is not None:
            self.highlight(highlighted, 1)

    def draw(self) -> None:
        """Draw the rows for the width of the list."""
        at = self.highlighted
        self._marked = at if at is not None and at < len(self.rows) else None
        prompts = [self._drawn(number) for number in range(len(self.rows))]
        options = [Option(each, disabled=not row.label) for each, row in zip(prompts, self.rows, strict=True)]
        self.set_options(options or [Option(Content.styled(self.nothing, "$muted"), disabled=True)])
        self.highlighted = self._marked

    def highlight(self, at: int, direction: int) -> None:
        """Highlight the row, or the next one that is no title."""
        while 0 <= at < len(self.rows) and not self.rows[at].label:
            at += direction
        if 0 <= at < len(self.rows):
            self.highlighted = at
        if self.highlighted is not None and self.highlighted <= 1:
            self.scroll_home(animate=False)  # shows the title above the first row

    def move(self, direction: int) -> None:
        """Highlight the next row."""
        at = self.highlighted
        self.highlight(0 if at is None else at + direction, direction)

    def page(self, direction: int) -> None:
        """Move by the rows on the screen."""
        at = self.highlighted or 0
        page = max(self.size.height - 2, 1)
        last = len(self.rows) - 1
        self.highlight(min(max(at + direction * page, 0), max(last, 0)), direction)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Move the mark to the highlighted row."""
        self._mark(event.option_index)

    def _mark(self, at: int) -> None:
        before, self._marked = self._marked, at
        for number in {before, at} - {None}:
            if number is not None and number < len(self.rows):
                self.replace_option_prompt_at_index(number, self._drawn(number))

    def _drawn(self, number: int) -> Content:
        row = self.rows[number]
        if not row.label:
            return Content.styled("\n" * (number > 0) + row.group, "bold $accent")
        width = (self.scrollable_content_region.width or 60) - len(_MARK)
        if self._brief:
            lines = _brief_lines(row, width)
        else:
            widest = max(len(row.label) for row in self.rows)
            lines = _lines(row, width, min(widest, int(width * self._label_share)), self._shortens)
        first = _MARK if number == self._marked else " " * len(_MARK)
        return Content("\n").join(
            [Content.styled(" " * len(_MARK) if n else first, "bold $accent") + line for n, line in enumerate(lines)]
        )


def _lines(row: Row, width: int, label_width: int, shortens: bool) -> list[Content]:
    """One row, its description below the label if the list is narrow or the label stays long."""
    label = _label(row)
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
    return lines + _detail(row, width)


def _brief_lines(row: Row, width: int) -> list[Content]:
    """One row with its description at the right edge."""
    about = Content.styled(visible(row.about), "$muted")
    room = max(width - about.cell_length - 1, 1)
    label = _label(row).truncate(room, ellipsis=True)
    return [label.pad_right(room + 1 - label.cell_length) + about, *_detail(row, width)]


def _label(row: Row) -> Content:
    label = Content.styled(visible(row.label), "$foreground")
    for position in row.positions:
        label = label.stylize("bold $accent", position, position + 1)
    return label


def _detail(row: Row, width: int) -> list[Content]:
    detail = Content.styled("  " + visible(row.detail), "$muted")
    return [detail.truncate(width, ellipsis=True)] if row.detail else []
