"""Drawing a token from logits, all of it in one op where a kernel serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from . import dispatch
from .dispatch import native
from .metal.sampling import sample

_LARGEST = 2**53  # a whole number that the kernels are told


class DrawParams(NamedTuple):
    """Sampling parameters of the native kernel, in its order, with the names of SamplingParams.

    `kept` is how many of the newest tokens any window looks at; 0: all.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_window: int
    kept: int


class Draw:
    """The draws of one completion, each one op from logits to token."""

    def __init__(
        self,
        params: DrawParams,
        bias: Sequence[tuple[int, float]],
        breakers: Sequence[int],
        *,
        filters_only: bool = True,
    ) -> None:
        """Without `filters_only`, something else than the params may have put logits at -inf before the draw."""
        self._filters = _filters(params) if filters_only and not bias else None
        self._arguments = (
            [float(min(number, _LARGEST)) for number in params],
            [token for token, _ in bias],
            [amount for _, amount in bias],
            list(breakers),
        )
        self._plan: Any = None

    def __call__(
        self, logits: mx.array, history: mx.array | None, seed: int, step: int
    ) -> tuple[mx.array, mx.array | None] | None:
        """The token () drawn from logits (V,), and `history` (N,) uint32 with it; None where no kernel serves.

        Seed and step are the words of the random key. The noise of a candidate is that of its place among the
        candidates. Without penalties no history is needed.
        """
        filters = self._filters
        if filters is not None and dispatch.metal("sample", logits.dtype, logits.size):
            place = mx.random.uniform(shape=(1,), key=mx.random.key((seed << 32) | step))
            drawn = dispatch.attempt("sample", lambda: sample.draw(logits[None], place, filters))
            if drawn is not None:
                return drawn[0].squeeze(0), history
        kernels = native()
        if kernels is None:
            return None
        if self._plan is None:
            self._plan = kernels.DrawPlan(*self._arguments)
        return kernels.draw(self._plan, logits.astype(mx.float32), history, seed, step)


def _filters(params: DrawParams) -> sample.Filters | None:
    """The filters of a draw that needs nothing else; None for other draws and for greedy ones."""
    filters = sample.Filters(params.temperature, min(params.top_k, 2**31 - 1), params.top_p, params.min_p)
    nothing = DrawParams(
        *params[:4], 1.0, 0.0, params.xtc_threshold, 1.0, 0.0, 0.0, params.penalty_window, 0.0, *params[12:]
    )
    return filters if params == nothing and params.temperature > 0 else None


def logprobs(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """Log-probability () of `token` under logits (V,), the likeliest tokens (A,), sorted, and theirs (A,)."""
    kernels = native()
    if kernels is not None:
        return kernels.logprobs(logits.astype(mx.float32), token, alternatives)
    return logprobs_reference(logits, token, alternatives)


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
