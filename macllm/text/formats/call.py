"""A tool call: what it says, how one is written, and where it ends in a text that arrives in pieces."""

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
    """A tool call that does not say what to call; `cause` says where it breaks."""


@dataclass(frozen=True)
class ToolCall:
    """A function to call with keyword arguments. `id` is the model's own, where it gave one."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    id: str | None = None


@dataclass(frozen=True)
class Quote:
    """Text between two tags in which nothing else counts.

    `escape` takes the next character with it. Where `follow` is given, the closing tag counts only before white
    space and one of these, or before the end: a raw value may speak of its own tag.
    """

    opening: str
    closing: str
    escape: str = ""
    follow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Element:
    """The way in which one call is written.

    `start` is the least that shows a call; `lead` may stand before it and is no part of the call. The call ends with
    the bracket that closes its first one (`brackets`, openings before closings), with `closing`, which is part of
    it, or before a tag that ends the section.
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
        """The least of the call, with what may stand before it."""
        return Shape(*self.lead, *self.start)

    @cached_property
    def lead_shape(self) -> Shape:
        """Text that may stand before the call."""
        return Shape(*self.lead)


class Scan:
    """The search for the end of one call, over text in pieces."""

    def __init__(self, element: Element, stops: tuple[str, ...] = ()) -> None:
        half = len(element.brackets) // 2
        self._opens, self._closes = element.brackets[:half], element.brackets[half:]
        self._quotes = {quote.opening: quote for quote in element.quotes}
        self._closing = element.closing
        self._outside = Literals((*element.brackets, *self._quotes, element.closing, *stops))
        self._depth = 0
        self._quote: Quote | None = None

    def read(self, text: str, at: int, final: bool) -> tuple[int, bool]:
        """The end of what certainly belongs to the call in `text[at:]`, and if the call ends there."""
        while True:
            at, more = self._inside(text, at, final) if self._quote else self._step(text, at, final)
            if more is not None:
                return at, more

    def _step(self, text: str, at: int, final: bool) -> tuple[int, bool | None]:
        """One literal outside of quotes: the place after it, and None to go on."""
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
        """The rest of a quote, or as much of it as there is."""
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
    """The tags that count within the quote, and the text that must follow its closing tag."""
    return Literals((quote.closing, quote.escape)), Shape(SPACE, quote.follow or "")


_REST = re.compile(r"\s*\Z")
