"""Draws of a token from logits, each of them one op where a kernel serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from . import dispatch
from .dispatch import native
from .draw_params import DrawParams
from .metal.sampling import sample

if TYPE_CHECKING:
    from .sampling_reference import DrawReference

_LARGEST = 2**53  # a whole number that the kernels are told


class Draw:
    """The draws of one completion, by its parameters, history and seed alone."""

    def __init__(self, params: DrawParams, history: Sequence[int], seed: int, *, finite: bool = True) -> None:
        """Without `finite`, logits may be -inf before any bias."""
        windows = params.windows
        self._kept = 0 if 0 in windows else max(windows, default=0)
        self._history = mx.array(list(history[-self._kept :]), dtype=mx.uint32) if windows else None  # -0: everything
        self._params, self._seed = params, seed
        self._filters = _filters(params) if finite else None
        self._plan: Any = None
        self._reference: DrawReference | None = None

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        """Token () uint32 drawn from logits (V,) as number `step` of the completion; it joins the history.

        Seed and step are the words of the random key. The noise of a candidate is that of its place among the
        candidates.
        """
        filters = self._filters
        if filters is not None and dispatch.metal("sample", logits.dtype, logits.size):
            place = mx.random.uniform(shape=(1,), key=mx.random.key((self._seed << 32) | step))
            drawn = dispatch.attempt("sample", lambda: sample.draw(logits[None], place, filters))
            if drawn is not None:
                return drawn[0].squeeze(0)
        kernels = native()
        # a history that the reference has lengthened stays with it
        if kernels is None or (self._reference is not None and self._history is not None):
            return self._one_by_one(logits, step)
        if self._plan is None:
            self._plan = kernels.DrawPlan(*_plan_arguments(self._params, self._kept))
        token, self._history = kernels.draw(self._plan, logits.astype(mx.float32), self._history, self._seed, step)
        return token

    def _one_by_one(self, logits: mx.array, step: int) -> mx.array:
        if self._reference is None:
            from .sampling_reference import DrawReference  # where a kernel serves, nothing waits for it

            history: Any = [] if self._history is None else self._history.tolist()
            self._reference = DrawReference(self._params, history, self._seed)
        return self._reference(logits, step)


def _filters(params: DrawParams) -> sample.Filters | None:
    """The filters of a draw that needs nothing else; None for other draws and for greedy ones."""
    more = params.bias or params.windows or params.typical_p < 1 or params.xtc_probability > 0
    if more or params.temperature == 0:
        return None
    return sample.Filters(params.temperature, min(params.top_k, 2**31 - 1), params.top_p, params.min_p)


def _plan_arguments(params: DrawParams, kept: int) -> tuple[list[Any], ...]:
    """Numbers, biased tokens, their biases, and breakers. `kept` newest tokens are looked at; 0: all."""
    numbers = [float(min(number, _LARGEST)) for number in (*params.numbers, kept)]
    return numbers, [token for token, _ in params.bias], [by for _, by in params.bias], list(params.dry_breakers)


def logprobs(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """Log-probability () of `token` under logits (V,), the likeliest tokens (A,), sorted, and theirs (A,)."""
    kernels = native()
    if kernels is not None:
        return kernels.logprobs(logits.astype(mx.float32), token, alternatives)
    from .sampling_reference import logprobs_reference

    return logprobs_reference(logits, token, alternatives)
