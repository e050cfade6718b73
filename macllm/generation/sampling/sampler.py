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


def adjusted(log_p: mx.array, params: SamplingParams, history: Sequence[int], bounds: Bounds) -> mx.array:
    """Log-probabilities (V,) after constraints, biases and penalties, in float32; as they are without any."""
    draw = _draw_params(params, bounds, log_p.size)
    if Constraints.needed(params):
        log_p = Constraints(params, history, bounds, log_p.size)(log_p)
    if draw.bias:
        tokens, amounts = zip(*draw.bias, strict=True)
        log_p = log_p.at[mx.array(tokens, dtype=mx.uint32)].add(mx.array(amounts, dtype=mx.float32))
    if draw.windows:
        from macllm.ops.sampling_reference import penalties

        for penalty in penalties(draw, history, log_p.size):
            log_p = penalty(log_p)
    return log_p


def _draw_params(params: SamplingParams, bounds: Bounds, vocab_size: int) -> DrawParams:
    same = {name: getattr(params, name) for name in DrawParams._fields if name != "bias"}
    return DrawParams(**same, bias=tuple(biases(params, bounds, vocab_size)))


def logprobs_of(logits: mx.array, token: mx.array, alternatives: int) -> tuple[mx.array, ...]:
    """Log-probability () of `token` under logits (V,); then the likeliest tokens (A,) and theirs (A,)."""
    found = logprobs(logits, token, min(alternatives, logits.size))
    return found if alternatives else found[:1]
