"""Texts between the special tokens that a model expects, and rows of tokens side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from macllm.errors import DataError, UsageError
from macllm.train.alignment import TextTokenizer
from macllm.train.rows import PlainText, PromptCompletion, Row

# Few distinct shapes let MLX reuse its buffers, at a cost of at most seven padding positions.
_PAD_TO = 8


@dataclass(frozen=True)
class Text:
    """The tokens of a text, (L,) int32, and the special tokens before and after it.

    `maskable` (L,) bool are the tokens that an objective may corrupt. The length counts the special tokens too; each
    piece of a long text gets its own.
    """

    inner: np.ndarray
    maskable: np.ndarray
    before: tuple[int, ...]
    after: tuple[int, ...]
    where: str
    splittable: bool = True
    ends: bool = True

    @property
    def tokens(self) -> np.ndarray:
        """All tokens, (L + special ones,) int32."""
        return self.around(self.inner)

    @property
    def sequences(self) -> tuple[np.ndarray, ...]:
        """The tokens alone."""
        return (self.tokens,)

    @property
    def num_target_tokens(self) -> int:
        """Number of tokens that may be corrupted."""
        return int(np.count_nonzero(self.maskable))

    def __len__(self) -> int:
        return len(self.inner) + self.num_special

    @property
    def num_special(self) -> int:
        """Number of special tokens around the text."""
        return len(self.before) + len(self.after)

    def around(self, inner: np.ndarray | Sequence[int]) -> np.ndarray:
        """Other tokens between the special ones, int32."""
        return np.concatenate([self.before, inner, self.after]).astype(np.int32)

    def cut(self, start: int, stop: int) -> Text:
        """The piece of `stop - start` tokens, special ones included, from token `start` of the text on."""
        own = slice(start, start + self._room(stop - start))
        return replace(self, inner=self.inner[own], maskable=self.maskable[own])

    def pieces(self, most: int) -> list[Text]:
        """The text in pieces of at most `most` tokens, special ones included."""
        return [self.cut(at, at + most) for at in range(0, len(self.inner), self._room(most))]

    def _room(self, most: int) -> int:
        """Tokens of a text in a piece of `most`."""
        if most <= self.num_special:
            cause = f"each text has {self.num_special} special tokens around it"
            raise UsageError(f"{most} tokens are too few for a text", cause=cause, remedy="a larger --max-seq-length")
        return most - self.num_special

    def fingerprint(self) -> bytes:
        """Lengths, tokens and what may be corrupted of them."""
        counts = b"".join(len(part).to_bytes(8, "little") for part in (self.before, self.inner, self.after))
        return counts + self.tokens.tobytes() + self.maskable.tobytes()


def plain_text(row: Row, tokenizer: TextTokenizer, special: Sequence[int] = (), *, closes: bool = False) -> Text:
    """The text of a row; `special` are the tokens in it that are not maskable.

    With `closes`, it ends in the end-of-sequence token. Raises DataError for a row of another kind.
    """
    if not isinstance(row, PlainText):
        raise DataError(
            f"{row.where} is a row of kind {row.kind}",
            cause="objectives that restore a corrupted text learn from texts",
            remedy='rows of {"text": ...}',
        )
    text = framed(row.text, tokenizer, row.where, closes=closes)
    return replace(text, maskable=~np.isin(text.inner, special))


def source_and_target(row: Row, tokenizer: TextTokenizer) -> tuple[Text, Text]:
    """The prompt of a row as a source and its completion as the target. Raises DataError for another row."""
    match row:
        case PromptCompletion(str(prompt), str(completion)):
            source, target = (framed(text, tokenizer, row.where, closes=True) for text in (prompt, completion))
        case _:
            raise DataError(
                f"{row.where} has messages"
                if isinstance(row, PromptCompletion)
                else f"{row.where} is a row of kind {row.kind}",
                cause="text to text learns from a source and a target, both texts",
                remedy='rows of {"prompt": "...", "completion": "..."} or {"source": "...", "target": "..."}',
            )
    if not len(source):
        raise DataError(f"{row.where} has an empty source", remedy="a prompt, or a tokenizer with an end token")
    return source, target


def framed(text: str, tokenizer: TextTokenizer, where: str, *, closes: bool = False) -> Text:
    """The tokens of `text`, all maskable, between those that the tokenizer adds.

    With `closes`, an end-of-sequence token is added too, if the tokenizer has one and adds none. Raises DataError for a
    tokenizer whose special tokens change those of the text.
    """
    inner, whole = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
    starts = range(len(whole) - len(inner) + 1)
    start = next((at for at in starts if whole[at : at + len(inner)] == inner), None)
    if start is None:
        raise DataError(
            f"{where} has other tokens with special tokens around it than without",
            remedy="a tokenizer that puts special tokens before and after a text only",
        )
    before, after = tuple(whole[:start]), tuple(whole[start + len(inner) :])
    end = tokenizer.eos_token_id
    if closes and end is not None and (*before, *inner, *after)[-1:] != (end,):
        after = (*after, end)
    return Text(np.array(inner, dtype=np.int32), np.ones(len(inner), dtype=bool), before, after, where)


def padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens padded on the right with token 0, (B, L) int32, and their lengths, (B,) int32."""
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    width = -(-max(1, *lengths.tolist()) // _PAD_TO) * _PAD_TO if len(rows) else _PAD_TO
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, lengths


def within(count: int | None, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays (B, L) without padding beyond the `count` rows of a table of positions."""
    return arrays if count is None else tuple(array[:, :count] for array in arrays)
