"""A screen with a conversation: its keys for scrolling, for block mode and for the chats beside it."""

from __future__ import annotations

from textual.containers import VerticalGroup
from textual.screen import Screen

from ..widgets.notices import Failure, Notice
from ..widgets.prompt import Prompt
from ..widgets.sidebar import ChatChosen, Sidebar, SidebarLeft
from ..widgets.transcript import BlockKeys, Transcript

WIDE = 100  # cells; a narrower screen has no room for a sidebar


class TranscriptScreen(Screen[None]):
    """Scrolls the conversation, enters block mode and the sidebar, while the prompt has the focus."""

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

    @property
    def sidebar(self) -> Sidebar:
        """The chats beside the conversation; hidden unless the screen has the class `-sidebar` and is wide."""
        return self.query_one(Sidebar)

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

    # The chats beside the conversation

    async def action_sidebar(self) -> None:
        """Show the chats and move in them; there already: hide them.

        A narrow terminal has them over the conversation.
        """
        if self.size.width < WIDE:
            await self.run_action("open('chats')")
        elif self.sidebar.display and self.sidebar.is_used:
            self.remove_class("-sidebar")
            self.prompt.focus()
        else:
            self.add_class("-sidebar")
            self.call_after_refresh(self.sidebar.enter)

    async def on_chat_chosen(self, message: ChatChosen) -> None:
        """Open a conversation."""
        self.prompt.focus()
        await self.run_action(f"run({message.line!r})")

    def on_sidebar_left(self, message: SidebarLeft) -> None:
        """Go back to the prompt."""
        self.prompt.focus()

    def on_screen_resume(self) -> None:
        """Show what a screen over this one has changed."""
        self.sidebar.reload()
