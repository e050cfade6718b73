"""Texts of the app around a conversation: welcome, notices, errors and the line of earlier messages."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from macllm.errors import MacllmError
from macllm.visible import one_line, visible

from ..keymap import keymap_of


class Welcome(Static):
    """The first lines, until the conversation begins."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)

    def on_mount(self) -> None:
        """Write the text with the keys in effect."""
        keymap = keymap_of(self.app)
        hints = (
            (keymap.shown("prompt", "send"), f"send; {keymap.shown('prompt', 'newline')} starts a new line"),
            (keymap.shown("chat", "stop"), "stop an answer, keep its text"),
            ("/ @", "commands; files to attach"),
            (keymap.shown("chat", "models"), "models to use or download"),
            (keymap.shown("chat", "help"), "help: all commands and keys"),
        )
        widest = max(len(key) for key, _ in hints)
        lines = [Content.assemble((key.ljust(widest + 3), "$foreground"), about) for key, about in hints]
        first = Content.assemble(("macllm", "bold $accent"), "  runs models on this machine; nothing leaves it")
        self.update(Content("\n").join([first, Content(""), *lines]))


class Earlier(Static):
    """A line in place of the earlier messages of a long conversation; a click draws more of them."""

    @dataclass
    class Asked(Message):
        """A request to draw more of them."""

    def show_count(self, count: int) -> None:
        """Say the number of messages that are not drawn."""
        self.display = count > 0
        key = keymap_of(self.app).shown("chat", "page_up")
        self.update(Content(f"▸ {count:,} earlier message{'s' * (count != 1)} ({key} at the top shows more)"))

    def on_click(self) -> None:
        """Ask for more."""
        self.post_message(self.Asked())


class Notice(Static):
    """A notice of the app, outside the conversation."""

    def __init__(self, text: str | Content) -> None:
        content = text if isinstance(text, Content) else Content(visible(text))
        super().__init__(content, markup=False)
        self.in_one_line = " ".join(content.plain.split())


class Failure(Static):
    """An error with its cause and remedy."""

    def __init__(self, error: MacllmError) -> None:
        lines = [Content.styled(visible(error.message), "bold")]
        if error.cause:
            lines.append(Content(visible(f"cause: {error.cause}")))
        if error.remedy:
            lines.append(Content(visible(f"try: {error.remedy}")))
        super().__init__(Content("\n").join(lines), markup=False)
        self.error = error
        self.in_one_line = one_line(": ".join(filter(None, [error.message.rstrip("."), error.cause or error.remedy])))
