"""The command palette, over the chat."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from macllm.chat.session import Session

from ..chats import store_of
from ..keymap import keymap_of
from ..palette import PaletteEntry, command_entries, matching, stored_entries
from ..widgets.row_list import Row
from .overlay import Overlay


class PaletteScreen(Overlay):
    """All commands, actions, recent chats and models; the typed letters filter them."""

    TITLE_TEXT: ClassVar = "Commands"
    PLACEHOLDER: ClassVar = "type a few letters"
    KEYS_TEXT: ClassVar = "↑ ↓ move · Enter run · Esc close"

    def __init__(self, session: Session | None, typed: str) -> None:
        super().__init__(typed)
        self._store = store_of(session)
        self._entries: list[PaletteEntry] = []

    def on_mount(self) -> None:
        """Show the commands, then, once they are read from the disk, chats and models, too."""
        self._entries = command_entries(keymap_of(self.app))
        self.refresh_rows()
        self.run_worker(self._read())

    async def _read(self) -> None:
        self._entries += await asyncio.to_thread(stored_entries, self._store)
        if self.is_open:
            at = self.list.highlighted or 0
            self.show_rows(self.rows(self.filter.value.strip()), highlighted=at)

    def rows(self, typed: str) -> Sequence[Row]:
        """The matching entries: by group without a filter, else best first."""
        return [
            Row(entry.label, entry.about, entry.value, "" if typed else entry.group, positions=positions)
            for entry, positions in matching(self._entries, typed)
        ]
