"""Streaming splitter for answers in messages with headers (Harmony), by channel and recipient."""

from __future__ import annotations

import re

from .formats.shape import SPACE, Literals, Shape
from .formats.table import Channels
from .output import Cutter, Kind, Output

_HEADER_CHARS = 256
_ROLE = re.compile(r"^\s*assistant\b")
_UNFINISHED = re.compile(r"(?:<\|\w+\|>|to=[^\s<]*+|\w++|\s++){0,16}(?:<\|?\w*\|?)?")  # a header that was cut off
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class ChannelSplitter(Cutter):
    """Splits the messages of a streamed answer into parts. A tag without a header after it is text."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(self._head)
        self._format = channels
        self._marks = Literals((*channels.ends, channels.start, channels.channel))
        self._name = re.compile(re.escape(channels.channel) + r"\s*(\w+)")
        # possible beginnings of a header, after the role; anything else is an answer without a header
        starts = (channels.start, channels.channel, channels.message)
        self._header = Shape(SPACE, ("assistant", ""), SPACE, (*starts, "to="))
        ending = (channels.start, channels.channel)
        self._after = {tag: Shape(tag, SPACE, ending) for tag in channels.ends}
        self._after[channels.start] = Shape(channels.start, ("assistant",))
        self._after[channels.channel] = Shape(channels.channel, SPACE, ("analysis", "commentary", "final"))
        self._over = {tag: Shape(tag, SPACE) for tag in channels.ends}
        self._kind: Kind = "content"
        self._calls = -1

    def open_by(self, prompt: str) -> None:
        """Continue in the state at the prompt's end: inside a header, or inside a message."""
        self.add(_ROLE.sub("", prompt.rpartition(self._format.start)[2]))
        if self._state == self._body:
            self._text, self._at = self._text[self._at :], 0
            kind = self._kind
            self._output = Output()
            self._output.tag()
            self._kind = kind

    def _say(self, end: int) -> None:
        call = self._calls if self._kind == "tool_call" else None
        self._output.text(self._kind, self._text[self._at : end], call)
        self._at = end

    def _head(self, final: bool) -> bool:
        """State: inside a header. Text that is not a header is an answer."""
        text, at = self._text, self._at
        if self._header.end(text, at) is None:
            if not final and self._header.may_begin(text, at):
                return False
            return self._begin_answer()
        end = text.find(self._format.message, at, at + _HEADER_CHARS)
        if end < 0:
            if final and _UNFINISHED.fullmatch(text, at):
                return False
            return (final or len(text) - at > _HEADER_CHARS) and self._begin_answer()
        header = text[at:end].rpartition(self._format.start)[2]
        self._at = end + len(self._format.message)
        self._open(header)
        return True

    def _begin_answer(self) -> bool:
        """Begin an answer without a header."""
        if self._at == len(self._text):
            return False
        self._kind, self._state = "content", self._body
        self._say(self._at + 1)
        return True

    def _open(self, header: str) -> None:
        """Begin the message that follows `header`."""
        self._output.tag()
        recipient, channel = _RECIPIENT.search(header), self._name.search(header)
        to = recipient[1] if recipient else ""
        self._kind, self._state = "content", self._body
        if to in self._format.thinking or (not to and channel and channel[1] in self._format.thinking):
            self._kind = "reasoning"
        elif to and to not in self._format.answering:
            self._kind = "tool_call"
            self._calls += 1
            if self._format.header_of_call:
                named = _ROLE.sub("", header).lstrip().removeprefix(self._format.channel).lstrip()
                self._output.text("tool_call", named + self._format.message, self._calls)

    def _body(self, final: bool) -> bool:
        """State: inside a message."""
        text = self._text
        found = self._marks.search(text, self._at)
        if found is None:
            self._say(len(text) if final else self._marks.tail(text, self._at))
            return False
        self._say(found.start())
        tag, after = found.group(), self._after[found.group()]
        if after.end(text, self._at) is not None:
            if tag in self._over:
                self._at = found.end()
        elif not final and after.may_begin(text, self._at):
            return False
        elif final and tag in self._over and self._over[tag].end(text, self._at) == len(text):
            self._at = found.end()
        else:
            self._say(found.end())
            return True
        self._output.tag()
        self._state = self._head
        return True
