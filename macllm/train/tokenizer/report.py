"""Tokens per word, bytes per token and unknown tokens of a tokenizer over texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from macllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fertility:
    """Counts over texts: UTF-8 bytes, words between white space, tokens, and unknown tokens.

    `is_sample`: these are the first 10 MB of the texts.
    """

    texts: int
    size_bytes: int
    words: int
    tokens: int
    unknown: int
    is_sample: bool

    @property
    def per_word(self) -> float:
        """Tokens per word."""
        return self.tokens / max(self.words, 1)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token."""
        return self.size_bytes / max(self.tokens, 1)

    def as_dict(self) -> dict[str, Any]:
        """The counts and ratios as JSON."""
        return asdict(self) | {"tokens_per_word": self.per_word, "bytes_per_token": self.bytes_per_token}


def measure(tokenizer: Tokenizer, texts: Sequence[str], *, is_sample: bool = False) -> Fertility:
    """The fit of a tokenizer to texts, without the tokens that encoding adds around them."""
    unknown_token = tokenizer.settings.named.get("unk_token")
    unknown = None if unknown_token is None else tokenizer.token_to_id(unknown_token.content)
    tokens = unknown_tokens = 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens += len(ids)
        unknown_tokens += ids.count(unknown) if unknown is not None else 0
    size, words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    return Fertility(len(texts), size, words, tokens, unknown_tokens, is_sample)
