"""Tokens of a text that is given as words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from macllm.errors import UsageError


class OffsetTokenizer(Protocol):
    """A tokenizer that tells the characters of each token."""

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Token ids of a text and the characters of each, None where they are not known."""
        ...


def word_tokens(words: Sequence[str], tokenizer: OffsetTokenizer) -> tuple[list[int], list[int]]:
    """The tokens of the words, joined by spaces, and the place of the first token of each word.

    The place is -1 for a word without a token that begins in it, such as a control character. Raises UsageError for a
    tokenizer that does not tell the characters of its tokens.
    """
    text = " ".join(words)
    known = tokenizer.offsets(text)
    if known is None:
        raise UsageError(
            "the tokens of words cannot be told apart",
            cause="the tokenizer does not know the characters of its tokens",
            remedy="a model with a tokenizer.json",
        )
    tokens, characters = known
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    spans = [(start, start + len(word)) for start, word in zip(starts, words, strict=False)]
    places = [-1] * len(words)
    word = 0
    for place, (start, stop) in enumerate(characters):
        if start == stop:  # an added token
            continue
        while word < len(words) and spans[word][1] <= start:
            word += 1
        if word < len(words) and places[word] < 0 and spans[word][0] < stop:
            places[word] = place
    return tokens, places
