"""Parts of an answer on their way out, without the white space that belongs to tags, and how text is cut into them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Kind = Literal["content", "reasoning", "tool_call"]


class Part(NamedTuple):
    """Text of one kind; `call` numbers the tool call that it belongs to, from 0."""

    kind: Kind
    text: str
    call: int | None = None


class Output:
    """Collects parts. White space next to a tag belongs to the tag, so it waits until other text follows."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._space: list[str] = []
        self._kind: Kind = "content"
        self._after_tag = False

    def tag(self) -> None:
        """Note that a tag stands here."""
        self._space.clear()
        self._after_tag = True

    def text(self, kind: Kind, text: str, call: int | None = None) -> None:
        """Add text; a change of kind or call comes with a tag."""
        self._kind = kind
        if self._after_tag:
            text = text.lstrip()
        if not text:
            return
        self._after_tag = False
        said = text.rstrip()
        if said:
            self._parts.append(Part(kind, "".join(self._space) + said, call))
            self._space.clear()
        if len(said) < len(text):
            self._space.append(text[len(said) :])

    def end(self) -> None:
        """Let go of what waits: an answer may end in white space."""
        if self._space and self._kind == "content":
            self._parts.append(Part("content", "".join(self._space)))
        self._space.clear()

    def take(self) -> list[Part]:
        """The parts so far, neighbours of one kind and call as one."""
        groups: list[tuple[Part, list[str]]] = []
        for part in self._parts:
            if not groups or (groups[-1][0].kind, groups[-1][0].call) != (part.kind, part.call):
                groups.append((part, []))
            groups[-1][1].append(part.text)
        self._parts.clear()
        return [first._replace(text="".join(texts)) for first, texts in groups]


class Cutter:
    """Cuts text that arrives in pieces, in states that each read on from where the last one left off.

    A state takes whether no more text comes, and tells if another is to read on at once.
    """

    def __init__(self, first: Callable[[bool], bool]) -> None:
        self._state = first
        self._text: str = ""
        self._at: int = 0
        self._output = Output()

    def add(self, text: str) -> list[Part]:
        """The parts that `text` makes certain, neighbours of one kind as one."""
        self._text, self._at = self._text[self._at :] + text, 0
        while self._state(False):
            pass
        return self._output.take()

    def finish(self) -> list[Part]:
        """The parts held back."""
        while self._state(True):
            pass
        self._output.end()
        return self._output.take()


class CodeSpans:
    """Tells if a growing text stands inside a span or a block of code, as Markdown writes them."""

    def __init__(self) -> None:
        self._ticks = 0  # of the run that the text ends with
        self._span = 0  # ticks that opened the span
        self._fence = 0  # ticks that opened the block
        self._begun = False  # the line has other text than space

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
        """Tell if what follows is code."""
        self._settle()
        return bool(self._span or self._fence)

    @property
    def within_line(self) -> bool:
        """Tell if other text than space stands before on the same line."""
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
