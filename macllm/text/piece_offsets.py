"""Characters of sentencepiece's pieces, which have their places in bytes of UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import sentencepiece


class Piece(Protocol):
    """A piece of sentencepiece's result, with its bytes in the text."""

    piece: str
    id: int
    begin: int
    end: int


def pieces_of(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[Piece]:
    """The pieces that a text is split into."""
    made: Any = processor.encode(text, return_type="proto")
    return list(made.pieces)


def characters_of(text: str, pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """The characters of each piece, from its bytes; each byte piece of a character has all of it."""
    starts = [0] * (len(text.encode()) + 1)
    for at, byte in enumerate(accumulate(len(char.encode()) for char in text), 1):
        starts[byte] = at
    spans: list[tuple[int, int]] = []
    for piece in reversed(pieces):
        start, stop = starts[piece.begin], starts[piece.end]
        if start == stop and piece.piece.startswith("<0x") and spans:
            stop = spans[-1][1]
        spans.append((start, stop))
    return spans[::-1]
