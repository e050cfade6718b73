"""Streaming decoders: tokens in, text out as soon as no later token can change it.

A decoder of the `tokenizers` library maps a whole list of tokens to text. The stages here do so token by token and hold
back only text that a later token could change; their concatenated outputs equal the library's text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from .formats.shape import Literals

_METASPACE = "\u2581"
_WORDPIECE_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
TEXT_CLEANUP = tuple(pair for pair in _WORDPIECE_CLEANUP if pair[0] != " do not")


class Stage(Protocol):
    """One step of a decoder."""

    def push(self, piece: str) -> Iterable[str]:
        """Pieces that are certain after `piece`."""
        ...

    def close(self) -> Iterable[str]:
        """Pieces that were held back."""
        ...


class PerToken:
    """A stage that maps each token independently."""

    def push(self, piece: str) -> Iterable[str]:
        """The mapped token."""
        return (piece,)

    def close(self) -> Iterable[str]:
        """Nothing: no text is held back."""
        return ()


class ReplaceInToken(PerToken):
    """Replaces a string inside each token."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def push(self, piece: str) -> Iterable[str]:
        """The token with `old` replaced by `new`."""
        return (piece.replace(self._old, self._new),)


class ReplaceInText:
    """`str.replace` over a text that arrives in pieces."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._literals = Literals([old])
        self._held = ""

    def push(self, piece: str) -> Iterable[str]:
        """The text up to where a match could still begin."""
        *done, rest = (self._held + piece).split(self._old)
        cut = self._literals.tail(rest, 0)
        self._held = rest[cut:]
        return (self._new.join([*done, rest[:cut]]),)

    def close(self) -> Iterable[str]:
        """The unfinished match."""
        held, self._held = self._held, ""
        return (held,)


class ByteFallback:
    """Decodes runs of byte tokens such as `<0xE2>`.

    A run that is not valid UTF-8 becomes one U+FFFD per byte, so a run is held back until it ends.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> Iterable[str]:
        """Nothing for a byte token, else the text of the preceding run and the token."""
        value = byte_value(piece)
        if value is None:
            return (*self.close(), piece)
        self._run.append(value)
        return ()

    def close(self) -> Iterable[str]:
        """The text of the run."""
        run = bytes(self._run)
        self._run.clear()
        try:
            return (run.decode(),) if run else ()
        except UnicodeDecodeError:
            return ("\ufffd",) * len(run)


def byte_value(token: str) -> int | None:
    """The byte of a token such as `<0xE2>`, None for other tokens."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


class ByteLevel:
    """Decodes GPT-2's byte alphabet as UTF-8; an incomplete character is held back.

    Tokens in `literal` are their own text, although they could be read as bytes.
    """

    literal: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._bytes = byte_alphabet()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> Iterable[str]:
        """The complete characters."""
        table = self._bytes
        try:
            raw = piece.encode() if piece in self.literal else bytes([table[char] for char in piece])
        except KeyError:
            raw = piece.encode()
        return (self._decoder.decode(raw),)

    def close(self) -> Iterable[str]:
        """U+FFFD for an incomplete character."""
        return (self._decoder.decode(b"", final=True),)


@cache
def byte_alphabet() -> Mapping[str, int]:
    """The 256 printable characters of byte-level BPE (GPT-2), mapped to their bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


class StripEachToken(PerToken):
    """Strips a character up to `left` and `right` times from each token."""

    def __init__(self, char: str, left: int, right: int) -> None:
        self._char, self._left, self._right = char, left, right

    def push(self, piece: str) -> Iterable[str]:
        """The stripped token."""
        start = _count(piece, self._char, self._left)
        end = len(piece) - _count(piece[::-1], self._char, self._right)
        return (piece[start:end] if start < end else "",)


class StripText:
    """Strips a character up to `left` times from the start of the text and `right` times from its end."""

    def __init__(self, char: str, left: int, right: int) -> None:
        self._char, self._left, self._right = char, left, right
        self._held = ""

    def push(self, piece: str) -> Iterable[str]:
        """The text without the stripped start; a possible end is held back."""
        if not piece:
            return ()
        if self._left:
            cut = _count(piece, self._char, self._left)
            self._left = self._left - cut if cut == len(piece) else 0
            piece = piece[cut:]
        if not self._right:
            return (piece,)
        text = self._held + piece
        keep = _count(text[::-1], self._char, self._right)
        self._held = text[len(text) - keep :]
        return (text[: len(text) - keep],)

    def close(self) -> Iterable[str]:
        """Nothing: the held text is stripped."""
        return ()


def _count(text: str, char: str, most: int) -> int:
    count = 0
    while count < most and text[count : count + 1] == char:
        count += 1
    return count


class Metaspace(PerToken):
    """Replaces `▁` by a space, and removes it from the first token if encoding added it."""

    def __init__(self, mark: str, prefixed: bool) -> None:
        self._mark = mark
        self._first = "" if prefixed else " "

    def push(self, piece: str) -> Iterable[str]:
        """The token with its spaces."""
        space, self._first = self._first, " "
        return (piece.replace(self._mark, space),)


class WordPiece(PerToken):
    """Joins tokens with the prefix `##` to the word before; other tokens begin a word after a space."""

    def __init__(self, prefix: str, cleanup: bool) -> None:
        self._prefix = prefix
        self._cleanup = _WORDPIECE_CLEANUP if cleanup else ()
        self._first = True

    def push(self, piece: str) -> Iterable[str]:
        """The word piece, with a space before a new word."""
        if not self._first:
            piece = piece[len(self._prefix) :] if piece.startswith(self._prefix) else " " + piece
        self._first = False
        for old, new in self._cleanup:
            piece = piece.replace(old, new)
        return (piece,)


class WordEnd:
    """Replaces the end-of-word suffix by a space, or by nothing in the last token, which is held back."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def push(self, piece: str) -> Iterable[str]:
        """The previous token."""
        held, self._held = self._held, piece
        return () if held is None else (held.replace(self._suffix, " "),)

    def close(self) -> Iterable[str]:
        """The last token."""
        return () if self._held is None else (self._held.replace(self._suffix, ""),)


class JoinWithSpaces(PerToken):
    """Joins tokens with spaces, as a tokenizer without a decoder does."""

    def __init__(self) -> None:
        self._first = True

    def push(self, piece: str) -> Iterable[str]:
        """The token, with a space before all but the first."""
        first, self._first = self._first, False
        return (piece if first else " " + piece,)


def decoder_stages(decoder: Mapping[str, Any] | None) -> list[Stage] | None:
    """The stages of a decoder in tokenizer.json; None if a step is not supported."""
    if decoder is None:
        return [JoinWithSpaces()]
    stages: list[Stage] = []
    fused = False
    for step in _flat(decoder):
        if step.get("type") == "Fuse":
            fused = True
            continue
        stage = _stage(step, fused)
        if stage is None:
            return None
        fused = fused or step.get("type") == "ByteLevel"
        stages.append(stage)
    return stages


def _flat(decoder: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if decoder.get("type") != "Sequence":
        return (decoder,)
    return [step for part in decoder.get("decoders", ()) for step in _flat(part)]


def _stage(step: Mapping[str, Any], fused: bool) -> Stage | None:
    kind = step.get("type")
    if kind == "Replace":
        pattern = step["pattern"].get("String")
        if not pattern:
            return None
        return (ReplaceInText if fused else ReplaceInToken)(pattern, step["content"])
    if kind == "Strip":
        strip = StripText if fused else StripEachToken
        return strip(step["content"], int(step["start"]), int(step["stop"]))
    if kind == "ByteLevel":
        return ByteLevel()
    if fused:
        return None
    if kind == "ByteFallback":
        return ByteFallback()
    if kind == "Metaspace":
        return Metaspace(step.get("replacement", _METASPACE), step.get("prepend_scheme", "always") != "never")
    if kind == "WordPiece":
        return WordPiece(step["prefix"], bool(step.get("cleanup", True)))
    if kind == "BPEDecoder":
        return WordEnd(step["suffix"])
    return None


def push_through(stages: Sequence[Stage], piece: str, start: int = 0) -> str:
    """Push `piece` through the stages from `start` on and return the text that is certain."""
    pieces = [piece]
    for stage in stages[start:]:
        pieces = [out for each in pieces for out in stage.push(each)]
    return "".join(pieces)


def close_stages(stages: Sequence[Stage]) -> str:
    """Close the stages in order, each through the stages after it, and return the text."""
    out: list[str] = []
    for index, stage in enumerate(stages):
        out += [push_through(stages, piece, index + 1) for piece in stage.close()]
    return "".join(out)
