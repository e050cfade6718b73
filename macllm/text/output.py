"""Parts of a streamed answer: their output, the base class of splitters, and Markdown code spans."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["content", "reasoning", "tool_call"]


class Part(NamedTuple):
    """Text of one kind; `call` is the index of its tool call, from 0."""

    kind: Kind
    text: str
    call: int | None = None


class Output:
    """Collects parts. White space next to a tag is dropped, so it is held back until other text follows."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._space: list[str] = []
        self._kind: Kind = "content"
        self._after_tag = False

    def tag(self) -> None:
        """Record a tag at this place."""
        self._space.clear()
        self._after_tag = True

    def text(self, kind: Kind, text: str, call: int | None = None) -> None:
        """Add text; call `tag` before a change of kind or call."""
        self._kind = kind
        if self._after_tag:
            text = text.lstrip()
        if not text:
            return
        self._after_tag = False
        stripped = text.rstrip()
        if stripped:
            self._parts.append(Part(kind, "".join(self._space) + stripped, call))
            self._space.clear()
        if len(stripped) < len(text):
            self._space.append(text[len(stripped) :])

    def end(self) -> None:
        """Release held white space: an answer may end in it."""
        if self._space and self._kind == "content":
            self._parts.append(Part("content", "".join(self._space)))
        self._space.clear()

    def take(self) -> list[Part]:
        """Remove and return the parts so far; neighbours of one kind and call are joined."""
        groups: list[tuple[Part, list[str]]] = []
        for part in self._parts:
            if not groups or (groups[-1][0].kind, groups[-1][0].call) != (part.kind, part.call):
                groups.append((part, []))
            groups[-1][1].append(part.text)
        self._parts.clear()
        return [first._replace(text="".join(texts)) for first, texts in groups]


class Cutter:
    """State machine over text that arrives in pieces.

    A state is a method that reads `_text` from `_at`. Its argument is True at the end of the text; it returns True to
    run the next state at once, False to wait for more text.
    """

    def __init__(self, first: Callable[[bool], bool]) -> None:
        self._state = first
        self._text: str = ""
        self._at: int = 0
        self._output = Output()

    def add(self, text: str) -> list[Part]:
        """Parts that are certain after `text`; neighbours of one kind are joined."""
        self._text, self._at = self._text[self._at :] + text, 0
        while self._state(False):
            pass
        return self._output.take()

    def finish(self) -> list[Part]:
        """End the text and return the parts held back."""
        while self._state(True):
            pass
        self._output.end()
        return self._output.take()


class CodeSpans:
    """Tracks code spans and code blocks in a growing Markdown text."""

    def __init__(self) -> None:
        self._ticks = 0  # at the end of the text
        self._span = 0  # ticks that opened the code span
        self._fence = 0  # ticks that opened the code block
        self._begun = False  # the line has text other than white space

    def feed(self, text: str) -> None:
        """Read more text."""
        for match in _MARKS.finditer(text):
            if match.group()[0] == "`":
                self._ticks += len(match.group())
                continue
            self._settle()
            if match.group() == "\n":
                self._span, self._begun = 0, False
            else:
                self._begun = self._begun or not match.group().isspace()

    @property
    def open(self) -> bool:
        """True if the next character is code."""
        self._settle()
        return bool(self._span or self._fence)

    @property
    def within_line(self) -> bool:
        """True if the current line has text other than white space."""
        return self._begun or bool(self._ticks)

    def _settle(self) -> None:
        ticks, self._ticks = self._ticks, 0
        if not ticks:
            return
        if self._fence:
            if not self._begun and ticks >= self._fence:
                self._fence = 0
        elif ticks >= 3 and not self._begun:
            self._fence = ticks
        elif not self._span:
            self._span = ticks
        elif self._span == ticks:
            self._span = 0
        self._begun = True


_MARKS = re.compile(r"`+|\n|[^`\n]+")
