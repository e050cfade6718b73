"""Last guard of the full screen: no drawn line has a character that a terminal would obey.

Widgets show foreign text with `visible`, which tells the user what is there. A text that a widget forgot loses those
characters here.
"""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from macllm.visible import without_hidden


class SafeLines(LineFilter):
    """Takes control, direction and hidden characters, all without width, out of drawn lines."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments, without those characters."""
        return [
            segment
            if segment.control or (segment.text.isascii() and segment.text.isprintable())
            else Segment(without_hidden(segment.text), segment.style)
            for segment in segments
        ]
