"""The two loops of generation: the prompt into the cache, then one token after another."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macllm.nn.protocol import LanguageModel, ModelCache

from .limits import not_finite
from .request import Prefill, TokenLogprob
from .sampling.sampler import Sampler, logprobs_of

_CLEAR_EVERY = 256  # decoding steps between releases of buffers that have become too small for the context
_CHECK_EVERY = 256  # decoding steps between two checks of the logits, the first step included


@dataclass(frozen=True)
class Sampled:
    """One token that was drawn, on the host."""

    token: int
    logprob: TokenLogprob | None = None


def prefill(
    model: LanguageModel, cache: ModelCache, tokens: Sequence[int], step: int, *, done: int = 0
) -> Generator[Prefill, None, mx.array]:
    """Append `tokens` to `cache`, `step` at a time; returns the logits (V,) of the last token.

    `done` is the number of tokens already in the cache. Only the last position goes through the head. `tokens` must not
    be empty.
    """
    total = done + len(tokens)
    hidden = None
    for start in range(0, len(tokens), step):
        chunk = mx.array([tokens[start : start + step]], dtype=mx.int32)
        hidden = model.hidden(chunk, cache=cache)
        done += chunk.shape[1]
        if done < total:
            mx.eval(cache.state)
            mx.clear_cache()
            yield Prefill(done, total)
    assert hidden is not None
    return model.logits(hidden[:, -1:])[0, -1]


def decode(
    model: LanguageModel,
    cache: ModelCache,
    logits: mx.array,
    sampler: Sampler,
    *,
    max_tokens: int,
    alternatives: int | None,
) -> Iterator[Sampled]:
    """Tokens of a completion that begins with `logits` (V,), with logprobs if `alternatives` is given.

    The forward pass after a token is queued before the token is read, so that the device never waits for the host:
    when token n is yielded, the cache holds it, except for the last of `max_tokens`. Closing waits for a queued pass.
    """
    ahead = _PendingToken(logits, sampler, 0, alternatives)
    try:
        for step in range(1, max_tokens + 1):
            ready = ahead
            if step < max_tokens:
                hidden = model.hidden(ready.token.reshape(1, 1), cache=cache)
                ahead = _PendingToken(model.logits(hidden)[0, -1], sampler, step, alternatives)
            if step % _CLEAR_EVERY == 0:
                mx.clear_cache()
            yield ready.read()
    finally:
        mx.eval(ahead.token)  # after an early stop: the step in flight holds a cache, and the next prefill wants memory


def is_broken(logits: mx.array) -> mx.array:
    """True (a scalar) for invalid logits (V,): with a NaN, or with an infinite maximum."""
    return mx.isnan(logits).any() | mx.isinf(logits.max())


class _PendingToken:
    """A sampled token still being computed (`async_eval`); checks its logits every `_CHECK_EVERY` steps."""

    def __init__(self, logits: mx.array, sampler: Sampler, step: int, alternatives: int | None) -> None:
        self.token: Any = sampler(logits, step)
        self._logprobs: tuple[Any, ...] = () if alternatives is None else logprobs_of(logits, self.token, alternatives)
        self._broken: tuple[mx.array, ...] = () if step % _CHECK_EVERY else (is_broken(logits),)
        mx.async_eval(self.token, *self._logprobs, *self._broken)

    def read(self) -> Sampled:
        """Wait for the token. Raises CheckpointError for logits that are not numbers."""
        token = int(self.token.item())
        if any(each.item() for each in self._broken):
            raise not_finite("logits")
        if not self._logprobs:
            return Sampled(token)
        logprob, *rivals = (array.tolist() for array in self._logprobs)
        ranked = sorted(zip(*rivals, strict=True), key=lambda rival: (-rival[1], rival[0]))
        return Sampled(token, TokenLogprob(token, logprob, tuple(ranked)))
