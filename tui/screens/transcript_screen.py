"""A screen with a conversation: its keys for scrolling and for block mode."""

from __future__ import annotations

from textual.containers import VerticalGroup
from textual.screen import Screen

from ..widgets.notices import Failure, Notice
from ..widgets.prompt import Prompt
from ..widgets.transcript import BlockKeys, Transcript


class TranscriptScreen(Screen[None]):
    """Scrolls the conversation and enters block mode, while the prompt has the focus."""

    @property
    def transcript(self) -> Transcript:
        """The scrolling conversation."""
        return self.query_one(Transcript)

    @property
    def turns(self) -> VerticalGroup:
        """The blocks of the conversation."""
        return self.transcript.turns

    @property
    def prompt(self) -> Prompt:
        """The input field."""
        return self.query_one(Prompt)

    def tell(self, news: Notice | Failure) -> None:
        """Show a notice at the end of the conversation.

        In block mode the end may be out of sight: it takes the place of the keys for a while.
        """
        if self.transcript.selected is None:
            self.transcript.add(news)
        else:
            self.query_one(BlockKeys).tell(news.in_one_line)

    def action_toggle_reasoning(self) -> None:
        """Fold or unfold the reasoning of the newest answer."""
        if (answer := self.transcript.newest_answer) is not None:
            answer.toggle_reasoning()

    def action_blocks(self) -> None:
        """Enter block mode."""
        self.transcript.move(-1)

    def action_page(self, direction: int) -> None:
        """Scroll by a page."""
        self.transcript.page(direction)

    def action_line(self, direction: int) -> None:
        """Scroll by a line."""
        self.transcript.scroll_relative(y=direction, animate=False)

    def action_newest(self) -> None:
        """Scroll to the end and follow it."""
        self.transcript.anchor()

    def on_transcript_selected(self, message: Transcript.Selected) -> None:
        """Show the keys of the selected block; without one, go back to the prompt."""
        self.query_one(BlockKeys).show(message.block)

    def on_transcript_left(self, message: Transcript.Left) -> None:
        """Go back to the prompt."""
        self.prompt.focus()
