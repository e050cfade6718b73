"""Input of the user's lines on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

from macllm.chat.session import Session

from ..completion import complete

YOU = "you: "
_MORE = "...: "


class Entry:
    """Reads lines, with editing, history and completion of commands and files except on a dumb terminal."""

    def __init__(self, session: Callable[[], Session | None] = lambda: None) -> None:
        self._session = session
        self._readline = None if os.environ.get("TERM", "dumb") == "dumb" else _editing()
        self._completions: list[str] = []
        if self._readline is not None:
            self._readline.set_completer(self._complete)

    @property
    def editing_file(self) -> str | None:
        """The file that changes the keys of editing; None: there is no editing."""
        if self._readline is None:
            return None
        return "~/.editrc" if "libedit" in (self._readline.__doc__ or "") else "~/.inputrc"

    def recall(self, lines: Iterable[str]) -> None:
        """Put lines of earlier conversations into the history."""
        for line in lines:
            self._remember(line)

    def ask(self) -> str | None:
        """The next message, with backslash-continued lines joined; None at the end of the input.

        Ctrl-C clears the line, which stays in the history.
        """
        lines: list[str] = []
        while True:
            try:
                line = input(_MORE if lines else YOU)
            except (EOFError, OSError):  # OSError: the terminal is gone
                with contextlib.suppress(OSError):
                    print(flush=True)
                return None
            except KeyboardInterrupt:
                self._remember("\n".join([*lines, self._typed()]))
                print("\n(Ctrl-D ends the conversation)", file=sys.stderr, flush=True)
                lines.clear()
                continue
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    def _typed(self) -> str:
        return self._readline.get_line_buffer() if self._readline is not None else ""

    def _remember(self, line: str) -> None:
        if self._readline is not None and line.strip():
            self._readline.add_history(line)

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            line, start = text, 0
            if self._readline is not None:
                line, start = self._readline.get_line_buffer(), self._readline.get_begidx()
            self._completions = words(line[: start + len(text)], start, self._session())
        return self._completions[state] if state < len(self._completions) else None


def words(line: str, start: int, session: Session | None = None) -> list[str]:
    """The words from `start` on that complete the line."""
    if (menu := complete(line, len(line), session)) is None:
        return []
    lines = [line[: menu.start] + item.text for item in menu.items]
    return [completed[start:] for completed in lines if completed.startswith(line)]


def _editing() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return readline
