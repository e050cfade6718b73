"""Tokens of spans of characters: a text is tokenized once, whole."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol

from macllm.errors import DataError

Span = tuple[int, int]


class TextTokenizer(Protocol):
    """The tokenizer interface that training uses."""

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        ...

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    @property
    def chat_template(self) -> Any:
        """The template, or None."""
        ...

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, in the vocabulary's spelling."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""
        ...

    def offsets(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[Span]] | None:
        """Token ids of a text and the characters of each, None where they are not known."""
        ...

    def render(self, messages: Any, *, tools: Any = None, add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of a conversation."""
        ...


def align(text: str, spans: Sequence[Span], tokenizer: TextTokenizer, where: str) -> tuple[list[int], list[Span]]:
    """The tokens of `text` and, for each span of characters, that of all tokens that overlap it.

    As in transformers' `return_assistant_tokens_mask`. Without offsets the bounds are found by tokenizing the text up
    to each: then raises DataError for a bound where the tokens of both sides differ from those of the whole.
    """
    known = tokenizer.offsets(text, add_special_tokens=False)
    if known is None:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        bounds = [(_before(text[:a], tokens, tokenizer, where), _before(text[:b], tokens, tokenizer, where))
                  for a, b in spans]  # fmt: skip
        return tokens, [(start[0], sum(stop)) for start, stop in bounds]
    tokens, characters = known
    reached = list(accumulate((stop for _, stop in characters), max))
    # A token of white space may have lost its characters, up to its end.
    begun = [
        before if start == stop else start for before, (start, stop) in zip([0, *reached], characters, strict=False)
    ]
    begun = list(accumulate(begun, max))
    return tokens, [(bisect_right(reached, start), bisect_left(begun, stop)) for start, stop in spans]


def text_tokens(text: str, tokenizer: TextTokenizer) -> list[int]:
    """The tokens of a text, with those that the model expects around it, once."""
    whole = tokenizer.encode(text)
    if whole[:1] == whole[1:2] or whole[-1:] == whole[-2:-1]:
        return _enclosed(whole, tokenizer.encode(text, add_special_tokens=False))[0]
    return whole


def completion_tokens(prompt: str, completion: str, tokenizer: TextTokenizer, where: str) -> tuple[list[int], int]:
    """The tokens of both as one text, as `text_tokens`, and the first that overlaps the completion."""
    text = prompt + completion
    inner, ((first, _),) = align(text, [(len(prompt), len(text))], tokenizer, where)
    whole, leading = _enclosed(tokenizer.encode(text), inner)
    return whole, leading + first


def _enclosed(whole: list[int], inner: list[int]) -> tuple[list[int], int]:
    """The tokens without added ends that the text has itself, and the number of tokens before it.

    The tokens of the text are `inner`. Texts that a chat template wrote have their begin token.
    """
    places = range(len(whole) - len(inner) + 1)
    start = next((at for at in places if whole[at : at + len(inner)] == inner), None)
    if start is None or not inner:
        return whole, start or 0
    before, after = whole[:start], whole[start + len(inner) :]
    before = before[:-1] if before[-1:] == inner[:1] else before
    after = after[1:] if after[:1] == inner[-1:] else after
    return [*before, *inner, *after], len(before)


def _before(text: str, tokens: list[int], tokenizer: TextTokenizer, where: str) -> tuple[int, bool]:
    """Number of `tokens` that lie wholly in the prefix `text`; True if the next token overlaps it."""
    own = tokenizer.encode(text, add_special_tokens=False) if text else []
    same = next((n for n, (a, b) in enumerate(zip(own, tokens, strict=False)) if a != b), min(len(own), len(tokens)))
    if len(own) - same > 1:
        raise DataError(
            f"{where}: a turn does not begin or end at a token boundary",
            cause="the tokenizer merges it with the neighbouring text",
            remedy="mask_prompt = false (train on every token)",
        )
    return same, len(own) > same
