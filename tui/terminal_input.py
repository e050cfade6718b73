"""The terminal's input, whatever its bytes are.

Textual's parser takes what follows an escape character within a paste for keys, of which Enter sends; and bytes that
are not UTF-8, as of Alt in an old terminal, would end the app.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable
from functools import partial

from textual import events
from textual._xterm_parser import XTermParser
from textual.driver import Driver
from textual.message import Message

_START, _END = "\x1b[200~", "\x1b[201~"


class PasteParser(XTermParser):
    """Parser of the terminal's input that ends a paste at its end alone."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._pieces: list[str] | None = None  # of a paste that has begun
        self._tail = ""  # its last characters, perhaps the beginning of its end

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the events of the next characters; "" is the end of the input."""
        if not data:
            yield from super().feed("")
            return
        while data and (self._pieces is not None or _START in data):
            if self._pieces is None:
                before, _, data = data.partition(_START)
                self._pieces, self._tail = [], ""
                if before:
                    yield from super().feed(before)
            text, end, rest = (self._tail + data).partition(_END)
            if not end:
                at = max(len(text) - len(_END) + 1, 0)
                self._pieces.append(text[:at])
                self._tail = text[at:]
                return
            pasted, self._pieces, data = "".join([*self._pieces, text]), None, rest
            yield events.Paste(pasted.replace("\0", ""))
        if data:
            yield from super().feed(data)


def read_safely(driver: type[Driver]) -> type[Driver]:
    """The driver with our parser and decoder, which its module makes by name."""
    module = vars(sys.modules[driver.__module__])
    if "XTermParser" in module:
        module.update(XTermParser=PasteParser, getincrementaldecoder=_decoder)
    return driver


def _decoder(encoding: str) -> Callable[[], codecs.IncrementalDecoder]:
    """A decoder that replaces the bytes it cannot decode."""
    return partial(codecs.getincrementaldecoder(encoding), errors="replace")
