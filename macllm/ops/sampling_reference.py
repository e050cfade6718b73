"""`Draw` and `logprobs` on MLX's operations.

Top-k, top-p and typical only ever drop tokens, so each of them hands on a shorter or sorted list of candidates
and nothing is put back into vocabulary order: the draw is made among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from .draw_params import DrawParams

if TYPE_CHECKING:
    from .penalties import CountPenalties, DryPenalty

_TINY = 2.0**-126  # smallest normal float32: below it, top-p keeps the likeliest token alone


class DrawReference:
    """`Draw`, one rule after another: biases, penalties, temperature, filters, noise."""

    def __init__(self, params: DrawParams, history: Sequence[int], seed: int) -> None:
        self._params, self._history, self._seed = params, history, seed
        tokens, amounts = zip(*params.bias, strict=True) if params.bias else ((), ())
        self._bias = mx.array(tokens, dtype=mx.uint32), mx.array(amounts, dtype=mx.float32)
        self._penalties: list[CountPenalties | DryPenalty] | None = None

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        """Token () uint32 drawn from logits (V,) as number `step` of the completion; it joins the history."""
        params = self._params
        if self._penalties is None:
            self._penalties = penalties(params, self._history, logits.size)
        if params.bias or self._penalties:
            logits = logits.astype(mx.float32)
        if params.bias:
            logits = logits.at[self._bias[0]].add(self._bias[1])
        for penalty in self._penalties:
            logits = penalty(logits)
        token = mx.argmax(logits) if params.temperature == 0 else _draw(logits, params, self._seed, step)
        for penalty in self._penalties:
            penalty.add(token)
        return token


def penalties(params: DrawParams, history: Sequence[int], vocab_size: int) -> list[CountPenalties | DryPenalty]:
    """The penalties of these parameters, each a function of logits (V,)."""
    if not params.windows:
        return []
    from .penalties import CountPenalties, DryPenalty  # brings numpy, which a first token need not wait for

    kinds = [CountPenalties] * params.counts + [DryPenalty] * bool(params.dry_multiplier)
    return [kind(params, history, vocab_size) for kind in kinds]


def _draw(logits: mx.array, params: DrawParams, seed: int, step: int) -> mx.array:
    # Threefry takes its key as two words: seed and step are one each, and any step can be replayed alone
    key = mx.random.key((seed << 32) | step)
    logits, tokens = candidates(logits.astype(mx.float32), params)
    if params.xtc_probability > 0:
        key, coin = mx.random.split(key)
        tossed = mx.random.uniform(key=coin) < params.xtc_probability
        logits = mx.where(tossed, drop_top_choices(logits, params.xtc_threshold), logits)
    drawn = mx.random.categorical(logits, key=key)
    return drawn if tokens is None else tokens[drawn]


def candidates(logits: mx.array, params: DrawParams) -> tuple[mx.array, mx.array | None]:
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


def logprobs_reference(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """`logprobs` on MLX's operations."""
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits)
    chosen = logits[token] - total
    if not alternatives:
        return chosen, mx.zeros(0, dtype=mx.uint32), mx.zeros(0)
    if alternatives < logits.size:
        first = logits.size - alternatives
        tokens = mx.sort(mx.argpartition(logits, first)[first:])
        tokens = tokens[mx.argsort(-logits[tokens])]
    else:
        tokens = mx.arange(logits.size)
    return chosen, tokens, logits[tokens] - total
