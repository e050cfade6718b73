"""Linear attention: weights are products of features, so a fixed-size state holds all keys and values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from . import dispatch
from .metal import linear_attention as plan

_SMALLEST_FEATURE = 1e-6  # so that a key far from all features still has a weight
_LARGEST_EXPONENT = 60.0  # sums of exp(60) stay within float32
_CHUNK = 128  # rows that attend to one another directly


class State(NamedTuple):
    """All keys and values so far: sum of k v^T (B, H, M, D) and sum of k (B, H, M), float32."""

    sums: mx.array
    norm: mx.array

    @classmethod
    def before(cls, q: mx.array, v: mx.array) -> State:
        """The state before the first key, for features (B, H, L, M) and values (B, H, L, D)."""
        batch, heads, _, features = q.shape
        return cls(mx.zeros((batch, heads, features, v.shape[3])), mx.zeros((batch, heads, features)))


def linear_attention(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool = True, state: State | None = None
) -> tuple[mx.array, State]:
    """Each query's mean of the values, weighted by products of nonnegative features; and the new state.

    Features q and k (B, H, L, M), v (B, H, L, D) -> (B, H, L, D). `state` holds the keys before these: a sequence split
    into chunks, down to single tokens, gives the same results. A key with features 0 has no weight; a query that sees
    no key gets 0.
    Katharopoulos et al. 2020, arXiv:2006.16236, eqs. 7 to 12 and 16 to 20.
    """
    start = state or State.before(q, v)
    if plan.supports(q, k, v) and dispatch.metal("linear_attention", q.dtype, q.shape[2]):
        done = dispatch.attempt("linear_attention", lambda: _kernels(q, k, v, start, causal))
        if done is not None:
            return done
    return linear_attention_reference(q, k, v, causal=causal, state=start)


def linear_attention_reference(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool = True, state: State | None = None
) -> tuple[mx.array, State]:
    """`linear_attention` in plain float32 operations, by chunks: memory is linear in the length."""
    length, (sums, norm) = q.shape[2], state or State.before(q, v)
    size = min(_CHUNK, length) if causal else length
    queries, keys, values = (_chunks(x.astype(mx.float32), size) for x in (q, k, v))  # (B, H, N, size, M or D)
    own = keys.swapaxes(-1, -2) @ values, keys.sum(-2)  # (B, H, N, M, D), (B, H, N, M)
    after = State(sums + own[0].sum(2), norm + own[1].sum(2))
    if causal:
        before = State(
            *(
                start[:, :, None] + mx.cumsum(x, axis=2, inclusive=False)
                for start, x in zip((sums, norm), own, strict=True)
            )
        )
        weights = mx.tril(queries @ keys.swapaxes(-1, -2))  # (B, H, N, size, size)
        y, totals = weights @ values, weights.sum(-1, keepdims=True)
    else:
        before = State(*(x[:, :, None] for x in after))
        y = totals = mx.array(0.0)
    totals = totals + queries @ before.norm[..., None]
    y = (y + queries @ before.sums) / mx.where(totals > 0, totals, 1)
    y = mx.where(totals > 0, y, 0).reshape(*v.shape[:2], -1, v.shape[3])[:, :, :length]
    return y.astype(v.dtype), after


def _chunks(x: mx.array, size: int) -> mx.array:
    """(B, H, L, D) -> (B, H, ceil(L / size), size, D), filled up with zeros."""
    short = -x.shape[2] % size
    padded = mx.pad(x, [(0, 0), (0, 0), (0, short), (0, 0)]) if short else x
    return padded.reshape(*x.shape[:2], -1, size, x.shape[3])


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
    """(M, D) float32: Gaussian rows, orthogonal in blocks of D. arXiv:2009.14794, 2.4."""
    blocks = -(-features // dim)
    directions_key, lengths_key = mx.random.split(mx.random.key(seed))
    q, r = mx.linalg.qr(mx.random.normal((blocks, dim, dim), key=directions_key), stream=mx.cpu)
    # Signs of r's diagonal make every direction equally likely.
    directions = q * mx.sign(mx.diagonal(r, axis1=-2, axis2=-1))[:, None]
    lengths = mx.linalg.norm(mx.random.normal((features, dim), key=lengths_key), axis=-1, keepdims=True)
    return directions.reshape(blocks * dim, dim)[:features] * lengths


def softmax_features(
    q: mx.array, k: mx.array, projection: mx.array, *, scale: float | None = None, seen: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Features (B, H, L, M) float32 for which linear attention estimates softmax(scale q k^T) v.

    For q and k (B, H, L, D) and a `random_projection` (M, D): exp(w x - |x|^2 / 2) / sqrt(M), plus a small constant so
    that no key is lost. `scale` is 1 / sqrt(D) unless given. Features are 0 for keys that are not `seen` (broadcasts to
    (B, 1, L, 1) bool). arXiv:2009.14794, lemma 1; the constant is from its code.
    """
    size = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    of_q, of_k = (_exponents(x, projection, size) for x in (q, k))
    # For q it cancels. Not for k: subtracting the largest key's exponent would let later keys change the weights of
    # earlier ones, and w x - |x|^2 / 2 is at most |w|^2 / 2 anyway.
    largest = mx.stop_gradient(of_q.max(-1, keepdims=True))
    part = 1 / math.sqrt(projection.shape[0])
    bounded = of_q - largest, mx.minimum(of_k, _LARGEST_EXPONENT)
    of_q, of_k = (part * (mx.exp(x) + _SMALLEST_FEATURE) for x in bounded)
    return of_q, of_k if seen is None else mx.where(seen, of_k, 0)


def _exponents(x: mx.array, projection: mx.array, size: float) -> mx.array:
    wide = x.astype(mx.float32) * size
    return wide @ projection.astype(mx.float32).swapaxes(-1, -2) - mx.square(wide).sum(-1, keepdims=True) / 2
