"""Losses of tokens, without all logits in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.cross_entropy import cross_entropy
from macllm.ops.recompute import after, random_state, replaying

from .recompute import Bound, bind

# Products of fewer rows read the head's matrix too often.
_CHUNK_BYTES, _FEWEST_ROWS = 1 << 24, 64
_RECOMPUTED_BYTES = 1 << 28  # logits that are worth computing again; the gradients of a head's weights take as much

Slices = Sequence[slice]
RowLoss = Callable[[mx.array, slice], mx.array]


class Scoring(Protocol):
    """A model with logits of tokens."""

    def logits(self, hidden: mx.array) -> mx.array:
        """(N, D) -> (N, V)."""
        ...


def token_losses(model: Scoring, hidden: mx.array, targets: mx.array, smoothing: float = 0.0) -> mx.array:
    """-log p(target) from hidden states, in nats and float32: (N, D), int (N,) -> (N,).

    With `smoothing` e, the cross-entropy with (1 - e) of the target and e / V of each token (arXiv:1512.00567, 7).
    Memory as in `chunked_losses`.
    """
    score = partial(_smoothed, smoothing) if smoothing else cross_entropy
    return chunked_losses(model, hidden, lambda logits, rows: score(logits, targets[rows])[:, None])[:, 0]


def _smoothed(smoothing: float, logits: mx.array, targets: mx.array) -> mx.array:
    """Smoothed cross-entropy: (N, V), int (N,) -> (N,)."""
    wide = logits.astype(mx.float32)
    picked = mx.take_along_axis(wide, targets[..., None], axis=-1).squeeze(-1)
    return cross_entropy(wide, targets) + smoothing * (picked - wide.mean(axis=-1))


def chunked_losses(model: Scoring, hidden: mx.array, loss: RowLoss, *, metrics: int = 0, beside: int = 0) -> mx.array:
    """Losses of rows from their logits, and metrics without gradients: (N, D) -> (N, 1 + metrics).

    `loss` maps the logits (n, V) of the rows of a slice to (n, 1 + metrics) in float32; other arrays that it uses are
    constants. Logits are computed for a chunk of rows at a time, for the gradients as well; `beside` counts the numbers
    that `loss` holds for a row in addition to them. A trained head computes them twice, if all take more than 256 MiB.
    """
    width = model.logits(hidden[:1]).shape[-1] + beside  # never evaluated
    size = max(_FEWEST_ROWS, _CHUNK_BYTES // (4 * width))
    count = hidden.shape[0]
    bound = bind(_head_modules(model), model.logits)
    if count <= size or (bound.weights and 4 * count * width <= _RECOMPUTED_BYTES):
        return loss(model.logits(hidden), slice(0, count))
    size = -(-count // -(-count // size))  # chunks of nearly equal sizes
    chunks = [slice(first, min(first + size, count)) for first in range(0, count, size)]
    if not bound.weights and isinstance(model, nn.Module) and model.training:
        return _with_slopes(model.logits, hidden, loss, chunks, metrics)
    return _recomputed(bound, hidden, loss, chunks)


@runtime_checkable
class _Headed(Protocol):
    def head_modules(self) -> Sequence[nn.Module]: ...


def _head_modules(model: Scoring) -> Sequence[nn.Module]:
    """The modules that `logits` uses; the whole model if it does not tell."""
    if isinstance(model, _Headed):
        return model.head_modules()
    return [model] if isinstance(model, nn.Module) else []


def _with_slopes(
    logits: Callable[[mx.array], mx.array], hidden: mx.array, loss: RowLoss, chunks: Slices, metrics: int
) -> mx.array:
    """Losses from a frozen head and their gradients, from the same logits."""
    learned = mx.arange(1 + metrics) == 0

    def run(hidden: mx.array) -> tuple[mx.array, mx.array]:
        losses, slopes = [], []
        for chunk in chunks:
            rows = after(hidden[chunk], [*losses[-1:], *slopes[-1:]])
            some = partial(_losses, logits, loss, chunk)
            seeds = mx.broadcast_to(learned.astype(mx.float32), (rows.shape[0], 1 + metrics))
            (found,), (slope,) = mx.vjp(some, [rows], [seeds])
            losses.append(found)
            slopes.append(slope)
        return mx.concatenate(losses), mx.concatenate(slopes)

    def gradients(hidden: mx.array, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> mx.array:
        return (cotangents[0][:, :1] * outputs[1]).astype(hidden.dtype)

    function: Any = mx.custom_function(run)
    function.vjp(gradients)
    return function(hidden)[0]


def _recomputed(bound: Bound, hidden: mx.array, loss: RowLoss, chunks: Slices) -> mx.array:
    """Losses whose gradients compute the logits again and sum those of weights in float32."""
    drawn: list[int] = []

    def some(chunk: slice, rows: mx.array, *weights: mx.array) -> mx.array:
        return loss(bound.run(*weights, rows), chunk)

    def run(hidden: mx.array, *weights: mx.array) -> mx.array:
        losses: list[mx.array] = []
        for chunk in chunks:
            drawn.append(random_state())
            losses.append(some(chunk, after(hidden[chunk], losses[-1:]), *weights))
        return mx.concatenate(losses)

    def gradients(primals: Any, cotangent: mx.array, outputs: mx.array) -> tuple[mx.array, ...]:
        hidden, *weights = primals if isinstance(primals, tuple | list) else (primals,)
        slopes: list[mx.array] = []
        sums = [mx.zeros(weight.shape) for weight in weights]
        for chunk, state in zip(chunks, drawn, strict=False):
            rows = after(hidden[chunk], [cotangent, *slopes[-1:], *sums])
            with replaying(state):
                slope, *found = mx.vjp(partial(some, chunk), [rows, *weights], [cotangent[chunk]])[1]
            slopes.append(slope)
            sums = [total + one for total, one in zip(sums, found, strict=True)]
        return mx.concatenate(slopes), *(s.astype(w.dtype) for s, w in zip(sums, weights, strict=True))

    function: Any = mx.custom_function(run)
    function.vjp(gradients)
    return function(hidden, *bound.weights)


def _losses(logits: Callable[[mx.array], mx.array], loss: RowLoss, chunk: slice, rows: mx.array) -> mx.array:
    return loss(logits(rows), chunk)
