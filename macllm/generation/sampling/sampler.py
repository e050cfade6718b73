"""From logits to a token: the rules that depend on what came before, then the draw."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from macllm.ops.draw_params import DrawParams
from macllm.ops.sampling import Draw, logprobs

from ..request import SamplingParams
from .constraints import Bounds, Constraints, biases


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
        bounds = bounds or Bounds()
        constrained = Constraints.needed(params)
        self._constraints = Constraints(params, history, bounds, vocab_size) if constrained else None
        self._before = bounds.drawn
        self._draw = Draw(_draw_params(params, bounds, vocab_size), history, seed, finite=not constrained)

    def __call__(self, logits: mx.array, step: int) -> mx.array:
        """Token () drawn from logits (V,) as number `step` of the completion; it joins the history.

        Tokens of the completion that the history has (`Bounds.drawn`) come before step 0.
        """
        step += self._before
        if self._constraints is None:
            return self._draw(logits, step)
        token = self._draw(self._constraints(logits), step)
        self._constraints.add(token)
        return token


def _draw_params(params: SamplingParams, bounds: Bounds, vocab_size: int) -> DrawParams:
    same = {name: getattr(params, name) for name in DrawParams._fields if name != "bias"}
    return DrawParams(**same, bias=tuple(biases(params, bounds, vocab_size)))


def logprobs_of(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """Log-probability () of `token` under logits (V,); then the likeliest tokens (A,) and theirs (A,)."""
    found = logprobs(logits, token, min(alternatives, logits.size))
    return found if alternatives else found[:1]
