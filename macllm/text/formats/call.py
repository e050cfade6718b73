"""Tool calls: the parsed value, a format's description, and the search for a call's end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from macllm.errors import MacllmError

from .shape import SPACE, Atom, Literals, Shape

Tools = Sequence[Mapping[str, Any]] | None


class ToolCallError(MacllmError):
    """A tool call that cannot be parsed; `cause` says why."""


@dataclass(frozen=True)
class ToolCall:
    """A function name with keyword arguments. `id` is the model's id of the call, if it wrote one."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    id: str | None = None


@dataclass(frozen=True)
class Quote:
    """Quoting in a call: brackets and tags between `opening` and `closing` are text.

    `escape` quotes the next character. With `follow`, the closing tag counts only before one of these (after white
    space) or at the end: a raw value may contain its own closing tag.
    """

    opening: str
    closing: str
    escape: str = ""
    follow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Element:
    """The format of one call.

    `start` is the shortest text that identifies a call; `lead` may precede it and is not part of the call. The call
    ends with the bracket that matches its first one (`brackets`: openings, then closings), with `closing`, or before a
    tag that ends the section.
    """

    name: str
    start: tuple[Atom, ...]
    read: Callable[[str, Tools], ToolCall]
    lead: tuple[Atom, ...] = ()
    quotes: tuple[Quote, ...] = ()
    brackets: str = ""
    closing: str = ""

    @cached_property
    def shape(self) -> Shape:
        """Shape of `lead` and `start`."""
        return Shape(*self.lead, *self.start)

    @cached_property
    def lead_shape(self) -> Shape:
        """Shape of `lead` alone."""
        return Shape(*self.lead)


class Scan:
    """Search for the end of one call in text that arrives in pieces."""

    def __init__(self, element: Element, stops: tuple[str, ...] = ()) -> None:
        half = len(element.brackets) // 2
        self._opens, self._closes = element.brackets[:half], element.brackets[half:]
        self._quotes = {quote.opening: quote for quote in element.quotes}
        self._closing = element.closing
        self._outside = Literals((*element.brackets, *self._quotes, element.closing, *stops))
        self._depth = 0
        self._quote: Quote | None = None

    def read(self, text: str, at: int, final: bool) -> tuple[int, bool]:
        """End of the text in `text[at:]` that certainly belongs to the call; True if the call ends there."""
        while True:
            at, more = self._inside(text, at, final) if self._quote else self._step(text, at, final)
            if more is not None:
                return at, more

    def _step(self, text: str, at: int, final: bool) -> tuple[int, bool | None]:
        """Read up to the next literal outside quotes: the position after it, and None to continue."""
        found = self._outside.search(text, at)
        if found is None:
            return (len(text) if final else self._outside.tail(text, at)), False
        if not final and self._outside.may_begin(text, found.start()):
            return found.start(), False  # of one quote or of three
        literal = found.group()
        if literal in self._quotes:
            self._quote = self._quotes[literal]
        elif literal in self._opens:
            self._depth += 1
        elif literal in self._closes:
            self._depth -= 1
            if self._depth <= 0:
                return found.end(), True
        else:
            return (found.end() if literal == self._closing else found.start()), True
        return found.end(), None

    def _inside(self, text: str, at: int, final: bool) -> tuple[int, bool | None]:
        """Read inside a quote: the position reached, and None to continue."""
        quote = self._quote
        assert quote is not None
        literals, follow = _patterns(quote)
        found = literals.search(text, at)
        if found is None:
            return (len(text) if final else literals.tail(text, at)), False
        if found.group() == quote.escape:
            if found.end() == len(text):
                return (len(text) if final else found.start()), False
            return found.end() + 1, None
        if quote.follow and follow.end(text, found.end()) is None:
            if not final and follow.may_begin(text, found.end()):
                return found.start(), False
            if _REST.match(text, found.end()) is None:
                return found.end(), None
        self._quote = None
        return found.end(), None


@cache
def _patterns(quote: Quote) -> tuple[Literals, Shape]:
    """The literals that matter within the quote, and the shape that must follow its closing tag."""
    return Literals((quote.closing, quote.escape)), Shape(SPACE, quote.follow or "")


_REST = re.compile(r"\s*\Z")
