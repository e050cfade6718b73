"""Streaming Markdown widget."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.content import Content
from textual.filter import LineFilter
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual
from textual.widget import Widget

from ..text.markdown import MarkdownBlock, parse, parse_growing
from ..text.splitter import BlockSplitter
from .layout import numbered_lines

_UNDERLINE_SO_FAR = re.compile(r"\n *[-=]+ *\Z")  # may still become a list or a rule, so it is not a heading yet

_KEPT_STRIPS = 500  # drawn lines kept for the next drawing; a screen has fewer


class StreamMarkdown(Widget):
    """A whole Markdown document in one widget, so that its cost grows with lines, not with list items.

    A finished block is parsed and laid out once per width; only the growing tail is laid out again, and
    only visible lines are drawn. `source` is a document that is complete.
    """

    def __init__(self, source: str = "") -> None:
        super().__init__()
        self._splitter = BlockSplitter()
        self._source: list[str] = [source]
        self._last_block = ""
        self._parts: list[MarkdownBlock] = parse(source)  # of finished blocks
        self._lines: list[Content] = []  # of the first `_laid_out` of them, in `_width`
        self._laid_out = 0
        self._codes = 0  # code blocks among them
        self._width = 0
        self._tail: list[Content] | None = None  # None: not laid out yet
        self._strips: dict[int, tuple[Content, Strip]] = {}  # lines as drawn in `_drawn_with`
        self._drawn_with: tuple[int, Style, Sequence[LineFilter]] | None = None

    @property
    def source(self) -> str:
        """The Markdown written so far."""
        return "".join(self._source)

    def write(self, text: str) -> None:
        """Append `text`."""
        self._source.append(text)
        for block in self._splitter.feed(text):
            self._parts += self._continued(block)
            self._last_block = block
        self._tail = None
        self.refresh(layout=True)

    def finish(self) -> None:
        """Parse the whole document once more, which corrects reference links and loose lists."""
        self._splitter.finish()
        self._parts = parse(self.source)
        self._width, self._tail = 0, None
        self.refresh(layout=True)

    def lines(self, width: int) -> list[Content]:
        """The document as lines of at most `width` cells."""
        if width != self._width:
            self._width, self._laid_out, self._codes, self._lines, self._tail = width, 0, 0, [], None
        new = self._parts[self._laid_out :]
        self._lines += numbered_lines(new, width, self._codes)
        self._laid_out += len(new)
        self._codes += sum(part.kind == "code" for part in new)
        if self._tail is None:
            tail = _UNDERLINE_SO_FAR.sub("\n", self._splitter.tail)
            self._tail = numbered_lines(self._continued(tail, growing=True), width, self._codes)
        return self._lines + self._tail

    def _continued(self, block: str, growing: bool = False) -> list[MarkdownBlock]:
        """The parts of a block after the existing ones: an empty line above, except within a tight list."""
        parts = parse_growing(block) if growing else parse(block)
        if parts and self._parts:
            in_list = parts[0].in_list and self._parts[-1].in_list
            parts[0].above = None if in_list and not self._last_block.endswith("\n\n") else ""
        return parts

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Number of lines."""
        return len(self.lines(width)) if width else 0

    def render_lines(self, crop: Region) -> list[Strip]:
        """Draw the lines of a region; a line that was drawn before is the same strip, cut and encoded already."""
        width = self.content_size.width
        if not width or not self.is_attached:  # before the first layout; removed, and drawn until the next layout
            return [Strip.blank(crop.width)] * crop.height
        lines = self.lines(width)
        style, selection, filters = self.visual_style, self.text_selection, self.get_line_filters()
        if self._drawn_with != (width, style, filters):
            self._drawn_with = (width, style, filters)
            self._strips.clear()
        if len(self._strips) > _KEPT_STRIPS:
            self._strips = {y: self._strips[y] for y in crop.line_range if y in self._strips}
        drawn: list[Strip] = []
        for y in crop.line_range:
            line = lines[y] if y < len(lines) else Content()
            span = selection.get_span(y) if selection is not None else None
            former = self._strips.get(y)
            if span is None and former is not None and former[0].is_same(line):
                drawn.append(former[1])
                continue
            strip = self._strip(self._selected(line, span), width, y)
            if span is None:
                self._strips[y] = line, strip
            drawn.append(strip)
        return [strip.crop(crop.x, crop.right) for strip in drawn] if crop.column_span != (0, width) else drawn

    def render_line(self, y: int) -> Strip:
        """Draw one line, for the place of the mouse in it."""
        return self.render_lines(Region(0, y, self.content_size.width, 1))[0]

    def _selected(self, line: Content, span: tuple[int, int] | None) -> Content:
        if span is None:
            return line
        start, end = span
        selected = Style.from_styles(self.screen.get_component_styles("screen--selection"))
        return line.stylize(selected, start, len(line) if end == -1 else end)

    def _strip(self, line: Content, width: int, y: int) -> Strip:
        style = self.visual_style
        strip = Visual.to_strips(self, line, width, 1, style, apply_selection=False)[0]
        strip = strip.adjust_cell_length(width, style.rich_style).apply_offsets(0, y)
        for line_filter in self.get_line_filters():
            strip = strip.apply_filter(line_filter, self.background_colors[1])
        return strip

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text as displayed."""
        text = "\n".join(line.plain for line in self.lines(self.content_size.width))
        return selection.extract(text), "\n"

    def action_link(self, href: str) -> None:
        """Open a clicked link."""
        self.app.open_url(href)
