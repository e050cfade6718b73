"""Where the user types."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding
from textual.widgets import TextArea

from ..keys import KEYS
from ..messages import PromptChanged, PromptSubmitted
from ..slash import completions


def _actions() -> dict[str, str]:
    """What each key does in the prompt: what it does in any text area, unless it is one of ours."""
    bindings = [(binding.key, binding.action) for binding in TextArea.BINDINGS if isinstance(binding, Binding)]
    ours = [(key.keys, key.action) for key in KEYS["prompt"]]
    return {key: action for keys, action in bindings + ours for key in keys.split(",")}


_ACTIONS = _actions()


class Prompt(TextArea):
    """Several lines of text: Enter sends, Up and Down at the edge walk through what was sent before."""

    BINDINGS: ClassVar = [
        Binding(key.keys, key.action, key.help, id=f"prompt.{key.id}", show=False) for key in KEYS["prompt"]
    ]

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Ask anything   (/help)",
        )
        self._history: list[str] = []
        self._position = 0  # in the history; its length: the draft
        self._draft = ""

    async def on_key(self, event: events.Key) -> None:
        """Act on a key at once: a binding acts when the key has gone round the app, and later letters may be in."""
        action = _ACTIONS.get(event.key)
        if action is not None and await self.app.run_action(action, default_namespace=self):
            event.prevent_default()
            event.stop()

    def on_paste(self, event: events.Paste) -> None:
        """Insert a paste; terminals send its line ends as carriage returns."""
        event.prevent_default()
        event.stop()
        self.insert(event.text.replace("\r\n", "\n").replace("\r", "\n"))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Tell the screen, which shows what a command may become."""
        event.stop()
        self.post_message(PromptChanged(self.text))

    def put(self, text: str) -> None:
        """Replace what is typed, cursor at the end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def remember(self, text: str) -> None:
        """Add a line to the history."""
        if not self._history or self._history[-1] != text:
            self._history.append(text)
        self._position, self._draft = len(self._history), ""

    def action_send(self) -> None:
        """Send, unless the line ends with a backslash: then go on in a new line."""
        if self.text.endswith("\\") and self.cursor_at_end_of_text:
            self.action_delete_left()
            self.action_newline()
        elif self.text.strip():
            self.post_message(PromptSubmitted(self.text.strip()))

    def action_newline(self) -> None:
        """Break the line."""
        start, end = self.selection
        self.replace("\n", start, end, maintain_selection_offset=False)
        self.scroll_cursor_visible()

    def action_complete(self) -> None:
        """Complete a command as far as it is certain."""
        found = completions(self.text)
        if found:
            self.put(f"/{found[0].name}" + (" " if found[0].argument else ""))

    def action_up(self) -> None:
        """One line up, or the message before."""
        if not self.cursor_at_first_line:
            self.action_cursor_up()
        elif self._position > 0:
            if self._position == len(self._history):
                self._draft = self.text
            self._show(self._position - 1)

    def action_down(self) -> None:
        """One line down, or the message after."""
        if not self.cursor_at_last_line:
            self.action_cursor_down()
        elif self._position < len(self._history):
            self._show(self._position + 1)

    def action_end(self) -> None:
        """To the end of the line; at the end of the text, to the newest line of the conversation."""
        if self.cursor_at_end_of_text:
            raise SkipAction
        self.action_cursor_line_end()

    def action_delete_or_leave(self) -> None:
        """Delete to the right; with nothing typed, the key is the app's and quits."""
        if not self.text:
            raise SkipAction
        self.action_delete_right()

    def action_cursor_page_up(self) -> None:
        """Not a key of the prompt: the conversation scrolls."""
        raise SkipAction

    def action_cursor_page_down(self) -> None:
        """Not a key of the prompt: the conversation scrolls."""
        raise SkipAction

    def action_cursor_up(self, select: bool = False) -> None:
        """One line up. With nothing to select, Shift+Up scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """One line down. With nothing to select, Shift+Down scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_down(select)

    def _show(self, position: int) -> None:
        self._position = position
        self.put(self._draft if position == len(self._history) else self._history[position])
