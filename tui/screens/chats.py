"""The stored conversations, over the chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from textual.binding import Binding
from textual.widgets import Input, Static

from macllm.chat.rows import StoredChat
from macllm.chat.session import Session
from macllm.errors import MacllmError

from .. import chats
from ..widgets.chat_rows import RESUME, chat_rows, messages_text, nothing_text
from .overlay import Overlay

_MOST_CHATS = 500
_Doing = Literal["search", "rename", "export", "remove"]


class ChatsScreen(Overlay):
    """Stored conversations by day. Typing searches in all messages; in the list, letters act."""

    BINDINGS: ClassVar = [
        # The keys that open it close it; by their ids they follow the user's keymap.
        Binding("ctrl+s", "back", show=False, priority=True, id="chat.chats"),
        Binding("ctrl+b", "back", show=False, priority=True, id="chat.sidebar"),
        Binding("tab", "switch", show=False, priority=True),
        Binding("slash", "to_search", show=False),
        Binding("x", "ask_remove", show=False),
        Binding("r", "begin('rename')", show=False),
        Binding("e", "begin('export')", show=False),
        Binding("y", "answer(True)", show=False),
        Binding("n", "answer(False)", show=False),
    ]
    TITLE_TEXT: ClassVar = "Chats"
    PLACEHOLDER: ClassVar = "type to search in all messages"
    NOTHING: ClassVar = ""
    LABEL_SHARE: ClassVar = 0.65
    SHORTENS: ClassVar = True
    SEARCH_KEYS: ClassVar = "Enter open · Tab into the list · Esc close"
    LIST_KEYS: ClassVar = "Enter open · x remove · r rename · e export · / search · Esc close"

    def __init__(self, session: Session | None, typed: str) -> None:
        super().__init__(typed)
        self._session = session
        self._store = chats.store_of(session)
        self._doing: _Doing = "search"
        self._target: StoredChat | None = None
        self._found: dict[str, StoredChat] = {}
        self._searched = ""
        self._notice = ""  # shown in place of the keys until the next action

    def on_mount(self) -> None:
        """Search, and describe the keys of the focused part."""
        self.watch(self, "focused", self._say_keys, init=True)

    def refresh_rows(self) -> None:
        """Search for the typed words in a thread."""
        if self._doing == "search":
            self._searched = self.filter.value.strip()
            self.run_worker(partial(self._search, self._searched), exclusive=True)

    async def _search(self, typed: str, at: int = 0) -> None:
        try:
            found = await asyncio.to_thread(chats.found, self._store, typed, _MOST_CHATS)
        except MacllmError as error:
            if self.is_open:
                self._say(error)
            return
        if not self.is_open:
            return
        self._found = {chat.id: chat for chat, _ in found}
        current = self._session.conversation.id if self._session else ""
        self.list.nothing = nothing_text(typed)
        self.show_rows(chat_rows(found, current), highlighted=at)

    def action_switch(self) -> None:
        """Move between the search field and the list."""
        if self._doing == "search":
            self._notice = ""
            (self.filter if self.focused is self.list else self.list).focus()

    def action_to_search(self) -> None:
        """Move to the search field."""
        self._notice = ""
        self.filter.focus()

    def action_begin(self, task: Literal["rename", "export"]) -> None:
        """Ask for the new name of the highlighted conversation, or for the file to export it to."""
        if (chat := self._highlighted) is None:
            return
        self._doing, self._target, self._notice = task, chat, ""
        title = "Name" if task == "rename" else "File (.md, .json or .html)"
        self.query_one("#overlay-title", Static).update(title)
        with self.prevent(Input.Changed):
            self.filter.value = chat.name if task == "rename" else chats.file_name(chat.name)
        self.filter.focus()

    def action_ask_remove(self) -> None:
        """Ask before the highlighted conversation is removed."""
        if (chat := self._highlighted) is not None:
            self._doing, self._target, self._notice = "remove", chat, ""
            self._say(f"Remove “{chat.name}” with its {messages_text(chat.messages)} for good? y n")

    def action_answer(self, yes: bool) -> None:
        """Remove the conversation, or not."""
        if self._doing != "remove" or (chat := self._target) is None:
            return
        self._doing = "search"
        self._say_keys()
        if yes and self._try(lambda: chats.remove(self._store, self._session, chat.id)):
            self._search_again()

    def choose(self) -> None:
        """Open the highlighted conversation, or finish renaming or exporting."""
        typed, chat = self.filter.value.strip(), self._target
        if self._doing in ("search", "remove"):
            super().choose()
        elif chat is not None and typed:
            if self._doing == "rename":
                done = self._try(lambda: chats.rename(self._store, self._session, chat.id, typed))
            else:
                done = self._try(lambda: self._export(chat, typed))
            if done:
                self._end()

    def action_back(self) -> None:
        """Leave a question or a field, else close."""
        if self._doing == "search":
            super().action_back()
        else:
            self._end()

    def _export(self, chat: StoredChat, name: str) -> None:
        self._notice = f"Exported to {chats.export(self._store, chat.id, name)}."

    @property
    def _highlighted(self) -> StoredChat | None:
        row = self.chosen
        return self._found.get((row.value or "").removeprefix(RESUME)) if row else None

    def _end(self) -> None:
        self._doing, self._target = "search", None
        self.query_one("#overlay-title", Static).update(self.TITLE_TEXT)
        with self.prevent(Input.Changed):
            self.filter.value = self._searched
        self.list.focus()
        self._say_keys()
        self._search_again()

    def _search_again(self) -> None:
        self.run_worker(partial(self._search, self._searched, self.list.highlighted or 0), exclusive=True)

    def _say_keys(self) -> None:
        if self._doing == "search":
            self._say(self._notice or (self.LIST_KEYS if self.focused is self.list else self.SEARCH_KEYS))

    def _say(self, text: str | MacllmError) -> None:
        self.query_one("#overlay-keys", Static).update(str(text))

    def _try(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except MacllmError as error:
            self._say(error)
            return False
        return True
