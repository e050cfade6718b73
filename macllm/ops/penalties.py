"""Penalties on the next token's logits for the tokens so far.

Everything here stays lazy: the newest token of a history is an array that has not been computed yet, so that
the step after it can be queued before anybody has looked at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .draw_params import DrawParams

_LONGEST = 2**31 - 1  # no history is longer: MLX counts along an axis in 32 bits
_LARGEST_PENALTY = 1e30  # finite, so that a vocabulary of nothing but repeats still has a distribution


class CountPenalties:
    """Repetition (arXiv:1909.05858, 4.1), presence and frequency penalties over `penalty_window` tokens."""

    def __init__(self, params: DrawParams, history: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._window = params.penalty_window
        recent = list(history[-self._window :])  # -0: everything
        self._recent = [mx.array(token, dtype=mx.uint32) for token in recent] if self._window else []
        counts = np.bincount(np.asarray(recent, dtype=np.int64), minlength=vocab_size)[:vocab_size]
        self._counts = mx.array(counts.astype(np.float32))

    def __call__(self, logits: mx.array) -> mx.array:
        """Penalized logits (V,)."""
        params, seen = self._params, self._counts > 0
        if params.repetition_penalty != 1.0:
            weaker = mx.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits = mx.where(seen, weaker, logits)
        if params.frequency_penalty:
            logits = logits - params.frequency_penalty * self._counts
        if params.presence_penalty:
            logits = logits - params.presence_penalty * seen
        return logits

    def add(self, token: mx.array) -> None:
        """Count `token` (), and no longer the one that leaves the window."""
        self._counts = self._counts.at[token].add(1.0)
        if self._window:
            self._recent.append(token)
            if len(self._recent) > self._window:
                self._counts = self._counts.at[self._recent.pop(0)].subtract(1.0)


class DryPenalty:
    """Don't Repeat Yourself: extending a repeat of n tokens costs multiplier * base^(n - allowed).

    `_lengths[i]` is the number of tokens that end at position i and also end the history; one token more
    turns it into `_lengths[i - 1] + 1` where position i holds that token, and into 0 elsewhere.
    """

    def __init__(self, params: DrawParams, history: Sequence[int], vocab_size: int) -> None:
        self._params = params
        self._vocab_size = vocab_size
        self._window = min(params.dry_window, _LONGEST)
        self._allowed = min(params.dry_allowed_length, _LONGEST)
        recent = np.asarray(history[-self._window :], dtype=np.int64)
        breaks = np.zeros(vocab_size, dtype=bool)
        breaks[[token for token in params.dry_breakers if token < vocab_size]] = True
        self._tokens = mx.array(recent.astype(np.uint32))
        self._lengths = mx.array(_repeat_lengths(recent, breaks))
        self._breaks = mx.array(breaks)
        # base^exponent must stay below the largest penalty, or float32 calls it infinite
        self._largest_exponent = math.log(_LARGEST_PENALTY) / math.log(params.dry_base) if params.dry_base > 1 else None

    def __call__(self, logits: mx.array) -> mx.array:
        """Penalized logits (V,)."""
        if self._tokens.size < 2:
            return logits
        params = self._params
        following, size = self._tokens[1:], self._tokens.size
        # a match may not begin before the window does
        lengths = mx.minimum(self._lengths[:-1], mx.arange(1, size, dtype=mx.int32))
        exponents = (lengths - self._allowed).astype(mx.float32)
        if self._largest_exponent is not None:
            exponents = mx.minimum(exponents, self._largest_exponent)
        penalties = mx.minimum(params.dry_multiplier * mx.power(params.dry_base, exponents), _LARGEST_PENALTY)
        applies = (lengths >= self._allowed) & ~self._breaks[following]
        penalties = mx.where(applies, penalties, 0.0)
        return logits - mx.zeros(self._vocab_size).at[following].maximum(penalties)

    def add(self, token: mx.array) -> None:
        """Lengthen the history by `token` ()."""
        zero = mx.zeros(1, dtype=mx.int32)
        if self._tokens.size:
            extends = (self._tokens == token) & ~self._breaks[token]
            longer = mx.concatenate([zero, self._lengths[:-1]]) + 1
            self._lengths = mx.concatenate([mx.where(extends, longer, 0), zero])
        else:
            self._lengths = zero
        self._tokens = mx.concatenate([self._tokens, token.astype(mx.uint32).reshape(1)])
        if self._window:
            self._tokens, self._lengths = self._tokens[-self._window :], self._lengths[-self._window :]


def _repeat_lengths(tokens: np.ndarray, breaks: np.ndarray) -> np.ndarray:
    """Length of the suffix of `tokens` that also ends at each position (0 at the last).

    This is the Z-function of the reversed tokens."""
    backwards, size = tokens[::-1].tolist(), len(tokens)
    breakers = np.flatnonzero(breaks[tokens[::-1]])
    longest = int(breakers[0]) if breakers.size else size
    matches = [0] * size
    left = right = 0
    for i in range(1, size):
        length = min(right - i, matches[i - left]) if i < right else 0
        while i + length < size and backwards[length] == backwards[i + length]:
            length += 1
        matches[i] = length
        if i + length > right:
            left, right = i, i + length
    return np.minimum(np.asarray(matches[::-1], dtype=np.int32), longest).astype(np.int32)
