"""Rows as pieces of text, each supervised or not, with token boundaries between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macllm.train.render import Example

if TYPE_CHECKING:
    from macllm.text.tokenizer import Tokenizer

_CONTEXT = 8  # tokens before one that may change its text: a space, the beginning of a character
_LONGEST = 8  # tokens of one character
_HEAD, _TAIL = 480, 120  # tokens of a long row that are shown


@dataclass(frozen=True)
class ShownPiece:
    """Text of one token, or of the few that make up one character; `weight` is that of its loss."""

    text: str
    weight: float
    tokens: int = 1


@dataclass(frozen=True)
class Shown:
    """One example of a row as training sees it; `left_out` tokens are missing after piece number `gap`."""

    where: str
    side: str
    tokens: int
    supervised: int
    pieces: tuple[ShownPiece, ...]
    lost_tokens: int = 0
    gap: int | None = None
    left_out: int = 0


def show(example: Example, side: str, whole: int, tokenizer: Tokenizer) -> Shown:
    """An example, cut from `whole` tokens, as pieces; the middle of a long one is left out."""
    count, lost = len(example.tokens), whole - len(example)
    if count <= _HEAD + _TAIL:
        pieces = tuple(_pieces(example, 0, count, tokenizer))
        return Shown(example.where, side, count, example.num_target_tokens, pieces, lost)
    head = tuple(_pieces(example, 0, _HEAD, tokenizer))
    tail = tuple(_pieces(example, count - _TAIL, count, tokenizer))
    supervised = example.num_target_tokens
    left_out = count - _HEAD - _TAIL
    return Shown(example.where, side, count, supervised, head + tail, lost, len(head), left_out)


def _pieces(example: Example, first: int, stop: int, tokenizer: Tokenizer) -> Iterator[ShownPiece]:
    tokens: list[int] = example.tokens.tolist()
    weights: list[float] = example.loss_weights.tolist()
    start = first
    for at in range(first, stop):
        before = tokens[max(0, start - _CONTEXT) : start]
        old, new = tokenizer.decode(before), tokenizer.decode(tokens[max(0, start - _CONTEXT) : at + 1])
        text = new[len(old) :] if new.startswith(old) else tokenizer.decode(tokens[start : at + 1])
        if text.endswith("\ufffd") and at + 1 < stop and at + 1 - start < _LONGEST:
            continue
        yield ShownPiece(text, max(weights[start : at + 1]), at + 1 - start)
        start = at + 1
