"""A question with numbered choices, between the conversation and the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding
from textual.containers import VerticalGroup
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from macllm.visible import one_line, visible

from ..keymap import keymap_of
from ..keys import KEYS
from ..outcomes import Choice, Question
from ..questions import chosen


class QuestionArea(VerticalGroup):
    """The place of the question, with padding: a margin of the box would narrow the conversation."""


class QuestionBox(Static, can_focus=True):
    """A digit, or the arrows and Enter choose. Esc, and typing or editing, goes back to the prompt.

    `edits` is true for the keys of the prompt.
    """

    BINDINGS: ClassVar = [Binding(key.keys, key.action, key.help, id=f"question.{key.id}") for key in KEYS["question"]]

    @dataclass
    class Chosen(Message):
        """The user chose; None: nothing. `typed` is the text typed instead, `key` the key pressed."""

        choice: Choice | None
        typed: str = ""
        key: str = ""

    def __init__(self, edits: Callable[[str], bool]) -> None:
        super().__init__(id="question", markup=False)
        self._question: Question | None = None
        self._at = 0
        self._edits = edits

    @property
    def question(self) -> Question | None:
        """The open question."""
        return self._question

    def ask(self, question: Question | None) -> None:
        """Show a question; None: show none."""
        self._question, self._at = question, 0
        self.display = question is not None
        if question is not None:
            self._draw()

    def on_resize(self) -> None:
        """Draw for the new width."""
        if self._question is not None:
            self._draw()

    def on_key(self, event: events.Key) -> None:
        """Choose by a digit; other characters, and keys that edit, go to the prompt."""
        typed = event.character if event.is_printable else None
        edits = event.key not in keymap_of(self.app).actions("question") and self._edits(event.key)
        if self._question is None or not (typed or edits):
            return
        event.stop()
        event.prevent_default()
        if typed is None:
            self.post_message(self.Chosen(None, key=event.key))
            return
        choice = chosen(self._question, typed)
        self.post_message(self.Chosen(choice, "" if choice else typed))

    def on_paste(self, event: events.Paste) -> None:
        """Let the prompt have pasted text."""
        event.stop()
        self.post_message(self.Chosen(None, event.text))

    def action_move(self, direction: int) -> None:
        """Move to the next choice."""
        if self._question is not None:
            self._at = (self._at + direction) % len(self._question.choices)
            self._draw()

    def action_choose(self) -> None:
        """Choose the current choice."""
        if self._question is not None:
            self.post_message(self.Chosen(self._question.choices[self._at]))

    def action_dismiss(self) -> None:
        """Choose nothing."""
        self.post_message(self.Chosen(None))

    def _draw(self) -> None:
        assert self._question is not None
        lines = [Content(visible(self._question.text))]
        for number, choice in enumerate(self._question.choices):
            at = number == self._at
            style = "bold $accent" if at else "$foreground"
            line = Content.styled(f"{'❯' if at else ' '} {number + 1}  {one_line(choice.label)}", style)
            # One line each, so that all choices are seen in a small window; the current one is whole
            lines.append(line if at else line.truncate(self.content_size.width or line.cell_length, ellipsis=True))
        self.update(Content("\n").join(lines))
