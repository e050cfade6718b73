"""History of the prompt. No Textual in here."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol, runtime_checkable

from macllm.errors import MacllmError

_MOST = 2000
_MOST_SEARCHED = 2000  # characters


@runtime_checkable
class PromptStore(Protocol):
    """Storage of the messages of all sessions."""

    def prompts(self) -> list[str]:
        """The stored messages, newest last. Raises: MacllmError."""
        ...

    def remember(self, text: str) -> None:
        """Queue a message for writing."""
        ...


def stored(store: object) -> list[str]:
    """The messages in a store; none if it has no history or cannot be read."""
    with suppress(MacllmError):
        return store.prompts() if isinstance(store, PromptStore) else []
    return []


class History:
    """Earlier messages, newest last. The prompt walks through them; its draft stands after the newest.

    A message that is changed on the way keeps the change until the walk ends.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._entries: list[str] = []
        self._position = 0  # the number of entries: the draft
        self._changed: dict[int, str] = {}  # texts as they were left, by position
        for entry in entries:
            self.add(entry)

    def add(self, entry: str) -> bool:
        """Add an entry and end the walk. Returns False if it is empty or repeats the newest."""
        new = bool(entry.strip()) and self._entries[-1:] != [entry]
        if new:
            self._entries = [*self._entries[1 - _MOST :], entry]
        self._position = len(self._entries)
        self._changed.clear()
        return new

    def begin_with(self, entries: Iterable[str]) -> list[str]:
        """Put older entries before those of this session, which are returned."""
        newer, self._entries = self._entries, []
        for entry in [*entries, *newer]:
            self.add(entry)
        return newer

    def older(self, shown: str) -> str | None:
        """The entry before the one that is shown; None at the oldest. What is shown is kept."""
        return None if self._position == 0 else self._move(-1, shown)

    def newer(self, shown: str) -> str | None:
        """The entry after the one that is shown, the draft after the newest; None at the draft."""
        return None if self._position == len(self._entries) else self._move(1, shown)

    def _move(self, direction: int, shown: str) -> str:
        self._changed[self._position] = shown
        self._position += direction
        entry = self._entries[self._position] if self._position < len(self._entries) else ""
        return self._changed.get(self._position, entry)

    def search(self, query: str) -> list[str]:
        """Entries with every word of the query near their beginning, newest first, each once.

        Case does not matter. A paste in an entry may be long, so only its beginning is searched.
        """
        words = query.lower().split()
        newest_first = dict.fromkeys(reversed(self._entries))
        return [entry for entry in newest_first if _contains(entry, words)]


def _contains(entry: str, words: list[str]) -> bool:
    beginning = entry[:_MOST_SEARCHED].lower()
    return all(word in beginning for word in words)
