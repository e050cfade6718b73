"""Choice of a model's formats from its chat template and its tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .table import CHANNELS, SECTIONS, SILENT, THINKING, WRAPPERS, Channels, Section, Thinking, Wrapper

_SHARED_ENDS = ("<|end|>",)  # end-of-turn tags, which do not indicate reasoning


@dataclass(frozen=True)
class Formats:
    """The formats of one model."""

    thinking: tuple[Thinking, ...] = ()
    wrappers: tuple[Wrapper, ...] = ()
    sections: tuple[Section, ...] = ()
    silent: tuple[str, ...] = ()
    channels: Channels | None = None

    @property
    def tags(self) -> frozenset[str]:
        """All opening and closing tags, except those that begin a turn."""
        found = {tag for each in (*self.thinking, *self.wrappers) for tag in (each.opening, each.closing)}
        found |= {tag for each in self.sections for tag in (*each.openings, *each.closings, *each.between)}
        if self.channels:
            found |= {self.channels.channel, self.channels.message}
        return frozenset(found)


def choose(source: str, has_token: Callable[[str], bool] = lambda token: False) -> Formats:
    """The formats whose tags occur in the source of a chat template or in the vocabulary."""
    if not source:
        return Formats()

    def known(tag: str) -> bool:
        return bool(tag) and (_written(tag, source) or has_token(tag))

    channels = next((each for each in CHANNELS if all(tag in source for tag in each.needs)), None)
    if channels:
        return Formats(channels=channels)
    return Formats(
        thinking=tuple(
            # a template that drops old reasoning may name only the closing tag
            each
            for each in THINKING
            if (known(each.opening) and (each.closing not in _SHARED_ENDS or known(each.closing)))
            or (each.closing not in _SHARED_ENDS and _written(each.closing, source))
        ),
        wrappers=tuple(each for each in WRAPPERS if _written(each.opening, source)),
        sections=tuple(
            each
            for each in SECTIONS
            if all(map(known, each.needs)) and (not any(each.openings) or any(map(known, each.openings)))
        ),
        silent=tuple(filter(known, SILENT)),
    )


def _written(tag: str, source: str) -> bool:
    """True if the source contains the tag, whole or in its tokens and words."""
    if tag in source:
        return True
    marker = next((each for each in _MARKERS if each in tag), "")
    if marker:
        return marker in source and all(word in source for word in _WORD.findall(tag.replace(marker, " ")))
    tokens = _TOKEN.findall(tag)
    return len(tokens) > 1 and all(token in source for token in tokens)


_MARKERS = ("｜DSML｜", ":opensource", "]<]minimax[>[")  # templates hold them in variables
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"<\|[^|>]*\|>")
