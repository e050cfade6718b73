"""The stored conversations beside the current one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalGroup
from textual.events import DescendantBlur, DescendantFocus, Hide, Resize
from textual.message import Message
from textual.widgets import Input, OptionList, Static

from macllm.chat.session import Session
from macllm.chat.store import Store
from macllm.errors import MacllmError

from .. import chats
from ..keymap import keymap_of
from .chat_rows import RESUME, chat_rows, nothing_text
from .row_list import RowList

_MOST_CHATS = 100  # Ctrl+S has more


@dataclass
class ChatChosen(Message):
    """The user chose a conversation: `line` is the slash command that opens it."""

    line: str


class SidebarLeft(Message):
    """The user goes back to the prompt."""


class Sidebar(VerticalGroup):
    """Conversations by day, read from the disk in a thread whenever the current one has changed."""

    BINDINGS: ClassVar = [
        Binding("escape", "back", show=False),
        Binding("slash", "search", show=False),
        Binding("up", "move(-1)", show=False, priority=True),
        Binding("down", "move(1)", show=False, priority=True),
    ]

    def __init__(self) -> None:
        super().__init__(id="sidebar")
        self._session: Session | None = None
        self._store: Store | None = None
        self._seen: tuple[str, int, str] | None = None  # the current conversation as it was at the last reading
        self._searched = ""

    def compose(self) -> ComposeResult:
        """Title, search, list and keys."""
        with Horizontal(id="sidebar-head"):
            yield Static("Chats", id="sidebar-title", markup=False)
            yield Input(placeholder="/ search", id="search", compact=True)
        yield RowList(nothing="", brief=True)
        yield Static(id="sidebar-keys", markup=False)

    def on_mount(self) -> None:
        """Read the conversations after the first paint."""
        self._show_keys(False)
        self.call_after_refresh(self.reload)

    @property
    def list(self) -> RowList:
        """The rows on the screen."""
        return self.query_one(RowList)

    @property
    def search(self) -> Input:
        """The field for the words to find."""
        return self.query_one("#search", Input)

    @property
    def is_used(self) -> bool:
        """True while the keys go here."""
        return self.has_focus_within

    def enter(self) -> None:
        """Let the keys move in the list, from the current conversation on."""
        self.list.focus()
        self.reload()

    def observe(self, session: Session | None) -> None:
        """Read the conversations again if the current one has changed."""
        if not self.display:
            return
        if session is not self._session:
            self._session, self._store = session, None
        if self._state() != self._seen:
            self.reload()

    def reload(self) -> None:
        """Read the conversations, in a thread, if they are on the screen."""
        if self.display:
            self._seen = self._state()
            self.run_worker(partial(self._read, self.search.value.strip()), exclusive=True)

    def _state(self) -> tuple[str, int, str] | None:
        if self._session is None:
            return None
        conversation = self._session.conversation
        return conversation.id, len(conversation.nodes), conversation.title

    async def _read(self, typed: str) -> None:
        self._store = self._store or chats.store_of(self._session)
        rows = self.list
        try:
            found = await asyncio.to_thread(chats.found, self._store, typed, _MOST_CHATS)
        except MacllmError as error:
            found, rows.nothing = [], str(error)
        else:
            rows.nothing = nothing_text(typed)
        if not self.query(RowList):
            return  # the app ends: widgets are removed before workers are cancelled
        current = self._session.conversation.id if self._session else ""
        before = None if typed != self._searched or rows.chosen is None else rows.chosen.value
        self._searched = typed
        rows.show(chat_rows(found, current, brief=True), highlighted=None)
        if self.is_used:
            self._highlight(before or ("" if typed else RESUME + current))

    def _highlight(self, value: str) -> None:
        values = [row.value for row in self.list.rows]
        self.list.highlight(values.index(value) if value in values else 0, 1)

    # Keys

    def action_back(self) -> None:
        """Show all conversations again, else go back to the prompt."""
        if self.search.value:
            self.search.clear()
            self.list.focus()
        else:
            self.post_message(SidebarLeft())

    def action_search(self) -> None:
        """Move to the search field."""
        self.search.focus()

    def action_move(self, direction: int) -> None:
        """Highlight the next conversation."""
        self.list.move(direction)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search."""
        event.stop()
        self.reload()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Open the highlighted conversation."""
        event.stop()
        self._choose()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the conversation."""
        event.stop()
        self._choose()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Show where the keys go."""
        self._show_keys(True)
        if self.list.highlighted is None and self.list.rows:
            self._highlight(RESUME + (self._session.conversation.id if self._session else ""))

    def on_descendant_blur(self, event: DescendantBlur) -> None:
        """Take the mark away, as the keys go elsewhere."""
        if not self.is_used:
            self._show_keys(False)
            self.list.show([row for row in self.list.rows if row.label], highlighted=None)

    def on_hide(self, event: Hide) -> None:
        """Leave the keys to the prompt when the terminal has become too narrow."""
        if self.is_used or self.screen.focused is None:
            self.post_message(SidebarLeft())

    def on_resize(self, event: Resize) -> None:
        """Draw the rows for the new width."""
        self.call_after_refresh(self.list.draw)

    def _choose(self) -> None:
        if (row := self.list.chosen) is not None and row.value is not None:
            self.search.clear()
            self.post_message(ChatChosen(row.value))

    def _show_keys(self, used: bool) -> None:
        key = keymap_of(self.app).shown("chat", "sidebar")
        self.query_one("#sidebar-keys", Static).update(f"Enter open · {key} hide" if used else f"{key} choose")
