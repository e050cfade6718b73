"""Tokens of a tokenizer that objectives put in place of others."""

from __future__ import annotations

from itertools import count, takewhile

from macllm.errors import UsageError
from macllm.text.tokenizer import Tokenizer


def mask(tokenizer: Tokenizer) -> int:
    """The mask token. Raises UsageError for a tokenizer without one."""
    if tokenizer.mask_token_id is None:
        raise UsageError(
            f"the tokenizer in {tokenizer.folder} has no mask token",
            cause='tokenizer_config.json names no "mask_token", or it is not in the vocabulary',
            remedy="macllm tokenizer train, which makes one with --type wordpiece or --add-mask",
        )
    return tokenizer.mask_token_id


def sentinels(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens <extra_id_0>, <extra_id_1> and so on, whose ids descend in T5's vocabularies.

    Raises UsageError for a tokenizer with fewer than two, which a span and the end of the spans take.
    """
    ids = (tokenizer.token_to_id(f"<extra_id_{number}>") for number in count())
    found = tuple(index for index in takewhile(lambda index: index is not None, ids) if index is not None)
    if len(found) < 2:
        raise UsageError(
            f"the tokenizer in {tokenizer.folder} has no sentinels",
            cause="<extra_id_0> and <extra_id_1> are not in its vocabulary",
            remedy="a tokenizer with them, as those of T5: macllm tokenizer train --sentinels 32",
        )
    return found


def full_stops(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end in a full stop."""
    tokens = ((index, tokenizer.id_to_token(index)) for index in range(tokenizer.vocab_size))
    return tuple(index for index, token in tokens if token is not None and token.endswith("."))
