"""From logits to a token.

Top-k, top-p and typical only ever drop tokens, so each of them hands on a shorter or sorted list of candidates
and nothing is put back into vocabulary order: the draw is made among the candidates. Where a kernel does all of it,
it draws the same token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from macllm.ops.sampling import Draw, DrawParams, logprobs

from ..request import SamplingParams
from .constraints import Bounds, Constraints, biases

if TYPE_CHECKING:
    from .penalties import CountPenalties, DryPenalty

_TINY = 2.0**-126  # smallest normal float32: below it, top-p keeps the likeliest token alone


class Sampler:
    """Draws the tokens of one completion, by its logits, history, seed and step alone."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        history: Sequence[int],
        vocab_size: int,
        bounds: Bounds | None = None,
    ) -> None:
        self._params = params
        self._seed = seed
        self._vocab_size = vocab_size
        looks_at = _windows(params)
        kept = 0 if 0 in looks_at else max(looks_at, default=0)
        bounds = bounds or Bounds()
        self._biases = biases(params, bounds, vocab_size)
        constrained = Constraints.needed(params)
        self._constraints = Constraints(params, history, bounds, vocab_size) if constrained else None
        self._draw_at_once = Draw(
            _draw_params(params, kept), self._biases, params.dry_breakers, filters_only=not constrained
        )
        self._history = mx.array(list(history[-kept:]), dtype=mx.uint32) if looks_at else None  # -0: everything
        self._penalties: list[CountPenalties | DryPenalty] = []  # where filters go one by one
        self._bias: tuple[mx.array, mx.array] | None = None

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        """Token () drawn from logits (V,) as number `step` of the completion; it joins the history."""
        if self._constraints is None:
            return self._next(logits, step)
        token = self._next(self._constraints(logits), step)
        self._constraints.add(token)
        return token

    def _next(self, logits: mx.array, step: int) -> mx.array:
        drawn = None if self._penalties else self._draw_at_once(logits, self._history, self._seed, step)
        if drawn is not None:
            token, self._history = drawn
            return token
        if self._history is not None and not self._penalties:
            self._penalties = _penalties(self._params, self._history, self._vocab_size)
        logits = self._biased(logits)
        for penalty in self._penalties:
            logits = penalty(logits)
        token = mx.argmax(logits) if self._params.temperature == 0 else self._draw(logits, step)
        for penalty in self._penalties:
            penalty.add(token)
        return token

    def _biased(self, logits: mx.array) -> mx.array:
        if self._biases and self._bias is None:
            tokens, amounts = zip(*self._biases, strict=True)
            self._bias = mx.array(tokens, dtype=mx.uint32), mx.array(amounts, dtype=mx.float32)
        if self._bias is not None or self._penalties:
            logits = logits.astype(mx.float32)
        return logits if self._bias is None else logits.at[self._bias[0]].add(self._bias[1])

    def _draw(self, logits: mx.array, step: int) -> mx.array:
        params = self._params
        # Threefry takes its key as two words: seed and step are one each, and any step can be replayed alone
        key = mx.random.key((self._seed << 32) | step)
        logits, tokens = candidates(logits.astype(mx.float32), params)
        if params.xtc_probability > 0:
            key, coin = mx.random.split(key)
            tossed = mx.random.uniform(key=coin) < params.xtc_probability
            logits = mx.where(tossed, drop_top_choices(logits, params.xtc_threshold), logits)
        drawn = mx.random.categorical(logits, key=key)
        return drawn if tokens is None else tokens[drawn]


def _draw_params(params: SamplingParams, kept: int) -> DrawParams:
    return DrawParams(**{name: getattr(params, name) for name in DrawParams._fields if name != "kept"}, kept=kept)


def _windows(params: SamplingParams) -> list[int]:
    """The windows of the penalties that there are."""
    counts = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    return [params.penalty_window] * bool(counts) + [params.dry_window] * bool(params.dry_multiplier)


def _penalties(params: SamplingParams, recent: mx.array, vocab_size: int) -> list[CountPenalties | DryPenalty]:
    from .penalties import CountPenalties, DryPenalty  # brings numpy, which a first token need not wait for

    counts = params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
    kinds = [CountPenalties] * bool(counts) + [DryPenalty] * bool(params.dry_multiplier)
    history: list[int] = recent.tolist()  # type: ignore[assignment]
    return [kind(params, history, vocab_size) for kind in kinds]


def candidates(logits: mx.array, params: SamplingParams) -> tuple[mx.array, mx.array | None]:
    """Candidate logits (C,) after temperature and filters, and their tokens (C,); None: all, in order."""
    tokens = None
    if 0 < params.top_k < logits.size:
        logits, tokens = keep_top_k(logits, params.top_k)
    if params.temperature != 1.0:  # leaves the order alone, so top-k need not wait for it
        logits = logits / params.temperature
    if params.top_p < 1:
        logits, tokens = keep_top_p(logits, tokens, params.top_p)
    if params.min_p > 0:
        logits = keep_min_p(logits, params.min_p)
    if params.typical_p < 1:
        logits, tokens = keep_typical(logits, tokens, params.typical_p)
    return logits, tokens


def keep_top_k(logits: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest of logits (V,), likeliest first, and their tokens, both (k,) (arXiv:1805.04833, 5.4)."""
    first = logits.size - k
    tokens = mx.sort(mx.argpartition(logits, first)[first:])
    order = mx.argsort(-logits[tokens])
    return logits[tokens[order]], tokens[order]


def keep_top_p(logits: mx.array, tokens: mx.array | None, p: float) -> tuple[mx.array, mx.array]:
    """The fewest likeliest candidates that hold mass p, the rest at -inf, sorted (arXiv:1904.09751, 3.1)."""
    order = mx.argsort(-logits)
    logits = logits[order]
    likelier = mx.cumsum(mx.softmax(logits), inclusive=False)
    logits = mx.where(likelier < max(p, _TINY), logits, -mx.inf)
    return logits, order if tokens is None else tokens[order]


def keep_min_p(logits: mx.array, p: float) -> mx.array:
    """Candidates at least p times as likely as the likeliest, the rest at -inf (arXiv:2407.01082, 3)."""
    return mx.where(logits < mx.max(logits) + math.log(p), -mx.inf, logits)


def keep_typical(logits: mx.array, tokens: mx.array | None, p: float) -> tuple[mx.array, mx.array]:
    """The fewest candidates of mass p, sorted by |surprise - entropy| (arXiv:2202.00666, 3)."""
    logprobs = logits - mx.logsumexp(logits)
    probabilities = mx.exp(logprobs)
    entropy = -mx.sum(mx.where(probabilities > 0, probabilities * logprobs, 0.0))
    order = mx.argsort(mx.abs(logprobs + entropy))
    nearer = mx.cumsum(probabilities[order], inclusive=False)
    logits = mx.where(nearer < max(p, _TINY), logits[order], -mx.inf)
    return logits, order if tokens is None else tokens[order]


def drop_top_choices(logits: mx.array, threshold: float) -> mx.array:
    """All candidates but those above the least likely one that still has probability `threshold` (XTC)."""
    choices = (mx.softmax(logits) >= threshold) & (logits > -mx.inf)
    least = mx.min(mx.where(choices, logits, mx.inf))
    return mx.where(choices & (logits > least), -mx.inf, logits)


def logprobs_of(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """Log-probability () of `token` under logits (V,); then the likeliest tokens (A,) and theirs (A,)."""
    found = logprobs(logits, token, min(alternatives, logits.size))
    return found if alternatives else found[:1]
