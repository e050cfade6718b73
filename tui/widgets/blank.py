"""Containers without lines of their own."""

from __future__ import annotations

from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class Blank(Widget):
    """Mixin, last of the bases: draws the background of a container as one strip, repeated.

    Several containers cover the conversation, and Textual draws all their lines again when they grow with an answer.
    `Widget.BLANK` skips the filters, such as the one for NO_COLOR.
    """

    def render_lines(self, crop: Region) -> list[Strip]:
        """The background; a container with a border is drawn as usual."""
        if self.styles.border_left[0]:
            return super().render_lines(crop)
        strip = Strip.blank(crop.width, self.visual_style.rich_style)
        for line_filter in self.get_line_filters():
            strip = strip.apply_filter(line_filter, self.background_colors[1])
        return [strip] * crop.height
