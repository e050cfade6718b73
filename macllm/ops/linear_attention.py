"""Attention whose weights are products of features, so that a state of one size holds all keys and values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from . import dispatch
from .metal import linear_attention as plan

_LEAST = 1e-6  # of a feature, so that keys far below the bound still count alike


class State(NamedTuple):
    """All keys and values so far: sum of k v^T (B, H, M, D) and sum of k (B, H, M), float32."""

    sums: mx.array
    norm: mx.array

    @classmethod
    def before(cls, q: mx.array, v: mx.array) -> State:
        """Of no keys, for features (B, H, L, M) and values (B, H, L, D)."""
        batch, heads, _, features = q.shape
        return cls(mx.zeros((batch, heads, features, v.shape[3])), mx.zeros((batch, heads, features)))


def linear_attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool = True, state: State | None = None
) -> tuple[mx.array, State]:
    """Each query's mean of the values, weighted by products of features that are not negative; and the state after it.

    Features q and k (B, H, L, M), v (B, H, L, D) -> (B, H, L, D). `state` holds keys that came before: chunks one after
    another, down to single tokens, give what the whole gives. A key whose features are 0 is not there; a query that
    sees none gets 0.
    Katharopoulos et al. 2020, arXiv:2006.16236, eqs. 7 to 12 and 16 to 20.
    """
    start = state or State.before(q, v)
    if plan.serves(q, k, v) and dispatch.metal("linear_attention", q.dtype, q.shape[2]):
        done = dispatch.attempt("linear_attention", lambda: _kernels(q, k, v, start, causal))
        if done is not None:
            return done
    return linear_attention_reference(q, k, v, causal=causal, state=start)


def linear_attention_reference(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool = True, state: State | None = None
) -> tuple[mx.array, State]:
    """The same from its definition, with all weights in memory; in float32."""
    queries, keys, values = (x.astype(mx.float32) for x in (q, k, v))
    sums, norm = state or State.before(q, v)
    weights = queries @ keys.swapaxes(-1, -2)
    weights = mx.tril(weights) if causal else weights
    totals = weights.sum(-1, keepdims=True) + queries @ norm[..., None]
    y = (weights @ values + queries @ sums) / mx.where(totals > 0, totals, 1)
    after = State(sums + keys.swapaxes(-1, -2) @ values, norm + keys.sum(-2))
    return mx.where(totals > 0, y, 0).astype(v.dtype), after


def _kernels(q: mx.array, k: mx.array, v: mx.array, state: State, causal: bool) -> tuple[mx.array, State]:
    def run(*arrays: mx.array) -> tuple[mx.array, ...]:
        return plan.run(*arrays, causal=causal)

    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        return tuple(plan.gradients(primals, cotangents, outputs[0], outputs[3], causal=causal))

    attend: Any = mx.custom_function(run)
    attend.vjp(gradients)
    y, sums, norm, _ = attend(q, k, v, *state)
    return y, State(sums, norm)


def elu_features(x: mx.array) -> mx.array:
    """elu(x) + 1, elementwise: x + 1 above 0, exp(x) below. arXiv:2006.16236, eq. 7."""
    return mx.where(x > 0, x + 1, mx.exp(mx.where(x > 0, 0, x)))


def random_projection(features: int, dim: int, *, seed: int) -> mx.array:
    """(M, D) float32: rows of normal numbers, each D of them at right angles to one another. arXiv:2009.14794, 2.4."""
    blocks = -(-features // dim)
    directions_key, lengths_key = mx.random.split(mx.random.key(seed))
    q, r = mx.linalg.qr(mx.random.normal((blocks, dim, dim), key=directions_key), stream=mx.cpu)
    # With r's diagonal positive, every direction is as likely.
    directions = q * mx.sign(mx.diagonal(r, axis1=-2, axis2=-1))[:, None]
    lengths = mx.linalg.norm(mx.random.normal((features, dim), key=lengths_key), axis=-1, keepdims=True)
    return directions.reshape(blocks * dim, dim)[:features] * lengths


def softmax_features(
    q: mx.array, k: mx.array, projection: mx.array, *, bound: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Features (B, H, L, M) float32 for which linear attention estimates softmax(q k^T / sqrt(D)) v; the keys' bound.

    Of q and k (B, H, L, D) by a `random_projection` (M, D): exp(w x - |x|^2 / 2 - bound) / sqrt(M). A query's bound is
    its largest exponent, that of keys (B, H, 1, 1) the largest of all; both are divided out again. More keys of the
    same sequence take the `bound` of the first. arXiv:2009.14794, lemma 1; bounds and the least feature as in its code.
    """
    of_q, of_k = (_exponents(x, projection) for x in (q, k))
    own = mx.stop_gradient(of_q.max(-1, keepdims=True))
    if bound is None:
        bound = mx.stop_gradient(of_k.max((-2, -1), keepdims=True))
    part = 1 / math.sqrt(projection.shape[0])
    return part * (mx.exp(of_q - own) + _LEAST), part * (mx.exp(of_k - bound) + _LEAST), bound


def _exponents(x: mx.array, projection: mx.array) -> mx.array:
    wide = x.astype(mx.float32) * x.shape[-1] ** -0.25
    return wide @ projection.swapaxes(-1, -2) - mx.square(wide).sum(-1, keepdims=True) / 2
