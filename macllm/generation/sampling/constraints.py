"""Tokens that must or must not come next: n-grams that repeat, bad words, least lengths, forced ends.

All of it depends on the tokens so far only, is done to logits before a token is drawn, and stays lazy: the newest
token may be an array that has not been computed yet. Every rule gives the numbers of transformers' processor of its
name. What bans a token for good is a bias, which the draw takes as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..request import SamplingParams

_NEVER = -math.inf


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The facts of a completion that its constraints depend on."""

    prompt: Sequence[int] = ()  # the encoder's, where there is one
    given: int = 0  # tokens of the history that count as new: those an encoder-decoder is forced to begin with
    drawn: int = 0  # tokens of the history that this completion drew before it was interrupted
    ends: frozenset[int] = frozenset()
    max_tokens: int | None = None  # that can be drawn


def biases(params: SamplingParams, bounds: Bounds, vocab_size: int) -> list[tuple[int, float]]:
    """Biases on single tokens, added to the logits at every step."""
    singles = {tokens[0]: bias for tokens, bias in params.sequence_bias if len(tokens) == 1}
    bad = {words[0] for words in params.bad_words_ids if len(words) == 1} - bounds.ends
    banned = sorted(bad.union(params.suppress_tokens))
    added = [*params.logit_bias, *singles.items(), *((token, _NEVER) for token in banned)]
    return [(token, bias) for token, bias in added if token < vocab_size]


class Constraints:
    """The rules of one completion that depend on what came before."""

    def __init__(self, params: SamplingParams, history: Sequence[int], bounds: Bounds, vocab_size: int) -> None:
        self._params, self._bounds, self._vocab_size = params, bounds, vocab_size
        self._length = len(history)
        self._new = bounds.given + bounds.drawn
        self._left = bounds.max_tokens
        self._ends = sorted(token for token in bounds.ends if token < vocab_size)
        begins = self._length + (self._length == 1 and not bounds.given and params.forced_bos_token_id is not None)
        self._begin = begins if params.begin_suppress_tokens and not bounds.drawn else -1
        self._groups = _groups(params)
        looks_back = bool(self._groups or params.no_repeat_ngram_size or params.encoder_no_repeat_ngram_size)
        self._tokens = mx.array(list(history), dtype=mx.uint32) if looks_back else None
        self._prompt = mx.array(list(bounds.prompt), dtype=mx.uint32) if params.encoder_no_repeat_ngram_size else None

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """True where these parameters have any such rule."""
        longer = any(len(tokens) > 1 for tokens, _ in params.sequence_bias)
        return bool(
            longer
            or any(len(words) > 1 for words in params.bad_words_ids)
            or params.no_repeat_ngram_size
            or params.encoder_no_repeat_ngram_size
            or params.min_length
            or params.min_new_tokens
            or params.begin_suppress_tokens
            or params.forced_bos_token_id is not None
            or params.forced_eos_token_id
        )

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits (V,) of the next token, in float32 where any of them changed."""
        params = self._params
        if self._length == 1 and not self._bounds.given and params.forced_bos_token_id is not None:
            return self._only(params.forced_bos_token_id)
        if self._left == 1 and params.forced_eos_token_id:
            return self._only(*params.forced_eos_token_id)
        for tokens, amounts in self._additions():
            logits = logits.astype(mx.float32).at[tokens].add(amounts)
        return logits

    def add(self, token: mx.array) -> None:
        """Lengthen the history by `token` ()."""
        self._length += 1
        self._new += 1
        if self._left is not None:
            self._left -= 1
        if self._tokens is not None:
            self._tokens = mx.concatenate([self._tokens, token.astype(mx.uint32).reshape(1)])

    def _additions(self) -> list[tuple[mx.array, mx.array]]:
        """Tokens (N,) and what is added to their logits (N,)."""
        params, added = self._params, []
        if self._tokens is not None:
            for prefixes, last, amounts in self._groups:
                size = prefixes.shape[1]
                if size <= self._length:
                    matches = mx.all(self._tokens[self._length - size :] == prefixes, axis=1)
                    added.append((last, mx.where(matches, amounts, 0.0)))
            added += self._repeats(self._tokens, params.no_repeat_ngram_size)
        if self._prompt is not None:
            added += self._repeats(self._prompt, params.encoder_no_repeat_ngram_size)
        banned: list[int] = []
        # transformers lets min_new_tokens replace min_length
        few = self._new < params.min_new_tokens if params.min_new_tokens else self._length < params.min_length
        if few:
            banned += self._ends
        if self._length == self._begin:
            banned += [token for token in params.begin_suppress_tokens if token < self._vocab_size]
        if banned:
            added.append((mx.array(banned, dtype=mx.uint32), mx.full((len(banned),), _NEVER)))
        return added

    def _repeats(self, seen: mx.array, n: int) -> list[tuple[mx.array, mx.array]]:
        """Bans of the tokens that followed in `seen` (N,) wherever it has the newest n - 1 tokens."""
        windows = seen.size - n + 1
        if n == 0 or windows < 1 or self._length < n - 1:
            return []
        assert self._tokens is not None
        tail = self._tokens[self._length - n + 1 :]
        matches = mx.ones(windows, dtype=mx.bool_)
        for place in range(n - 1):
            matches = matches & (seen[place : place + windows] == tail[place])
        return [(seen[n - 1 :], mx.where(matches, _NEVER, 0.0))]

    def _only(self, *tokens: int) -> mx.array:
        allowed = mx.array(tokens, dtype=mx.uint32)
        return mx.full((self._vocab_size,), _NEVER).at[allowed].maximum(0.0)


def _groups(params: SamplingParams) -> list[tuple[mx.array, mx.array, mx.array]]:
    """Sequences grouped by length: all tokens but the last (N, L), the last (N,), its bias (N,)."""
    by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    bad = [(words, _NEVER) for words in params.bad_words_ids]
    for tokens, bias in [*dict(params.sequence_bias).items(), *bad]:
        if len(tokens) > 1:
            by_length.setdefault(len(tokens), []).append((tokens, bias))
    return [
        (
            mx.array([tokens[:-1] for tokens, _ in group], dtype=mx.uint32),
            mx.array([tokens[-1] for tokens, _ in group], dtype=mx.uint32),
            mx.array([bias for _, bias in group], dtype=mx.float32),
        )
        for group in by_length.values()
    ]
