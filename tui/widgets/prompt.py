"""The input field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.actions import SkipAction
from textual.binding import Binding
from textual.message import Message
from textual.widgets import TextArea

from ..keys import KEYS
from ..slash import completions


@dataclass
class PromptSubmitted(Message):
    """The user sent a message."""

    text: str


@dataclass
class PromptChanged(Message):
    """The text in the input field changed."""

    text: str


def _actions() -> dict[str, str]:
    """The action of each key in the prompt: our bindings, then those of TextArea."""
    bindings = [(binding.key, binding.action) for binding in TextArea.BINDINGS if isinstance(binding, Binding)]
    ours = [(key.keys, key.action) for key in KEYS["prompt"]]
    return {key: action for keys, action in bindings + ours for key in keys.split(",")}


_ACTIONS = _actions()


class Prompt(TextArea):
    """Multi-line input: Enter sends; Up on the first line and Down on the last walk through the history."""

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
        """Handle a key at once; a binding would act after the key has bubbled up, maybe after later keys."""
        action = _ACTIONS.get(event.key)
        if action is not None and await self.app.run_action(action, default_namespace=self):
            event.prevent_default()
            event.stop()

    def on_paste(self, event: events.Paste) -> None:
        """Insert pasted text, with carriage returns converted to newlines."""
        event.prevent_default()
        event.stop()
        self.insert(event.text.replace("\r\n", "\n").replace("\r", "\n"))

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Post PromptChanged, so that the screen can show completions."""
        event.stop()
        self.post_message(PromptChanged(self.text))

    def put(self, text: str) -> None:
        """Replace the text and put the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def remember(self, text: str) -> None:
        """Add a line to the history."""
        if not self._history or self._history[-1] != text:
            self._history.append(text)
        self._position, self._draft = len(self._history), ""

    def action_send(self) -> None:
        """Send; after a trailing backslash, break the line instead."""
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
        """Complete the command name to the first match."""
        found = completions(self.text)
        if found:
            self.put(f"/{found[0].name}" + (" " if found[0].argument else ""))

    def action_up(self) -> None:
        """Move one line up, or to the previous message."""
        if not self.cursor_at_first_line:
            self.action_cursor_up()
        elif self._position > 0:
            if self._position == len(self._history):
                self._draft = self.text
            self._show(self._position - 1)

    def action_down(self) -> None:
        """Move one line down, or to the next message."""
        if not self.cursor_at_last_line:
            self.action_cursor_down()
        elif self._position < len(self._history):
            self._show(self._position + 1)

    def action_end(self) -> None:
        """Move to the end of the line; at the end of the text, scroll the conversation to its end."""
        if self.cursor_at_end_of_text:
            raise SkipAction
        self.action_cursor_line_end()

    def action_delete_or_leave(self) -> None:
        """Delete to the right; in an empty prompt, let the app quit."""
        if not self.text:
            raise SkipAction
        self.action_delete_right()

    def action_cursor_page_up(self) -> None:
        """Leave the key to the conversation, which scrolls."""
        raise SkipAction

    def action_cursor_page_down(self) -> None:
        """Leave the key to the conversation, which scrolls."""
        raise SkipAction

    def action_cursor_up(self, select: bool = False) -> None:
        """Move one line up. In an empty prompt, Shift+Up scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move one line down. In an empty prompt, Shift+Down scrolls the conversation."""
        if select and not self.text:
            raise SkipAction
        super().action_cursor_down(select)

    def _show(self, position: int) -> None:
        self._position = position
        self.put(self._draft if position == len(self._history) else self._history[position])
