"""What comes between the projections and attention: heads' norm, rotary positions, heads before positions."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .rope import rope_reference


class Rules(NamedTuple):
    """What is done to a head of `head_dim` numbers.

    Norms have weights (head_dim,) to which `shift` is added. Rotations: see `rope`; dims that turn are scaled by
    `magnitude`. What is None is left out.
    """

    head_dim: int
    q_norm: mx.array | None = None
    k_norm: mx.array | None = None
    eps: float = 1e-5
    shift: float = 0.0
    wavelengths: mx.array | None = None
    magnitude: float = 1.0
    interleaved: bool = False


def qkv_post_reference(
    q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: int | mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The same from its definition: (B, L, H * D) and twice (B, L, K * D) -> (B, H, L, D) and twice (B, K, L, D)."""

    def one(x: mx.array, norm: mx.array | None) -> mx.array:
        heads = x.reshape(*x.shape[:2], -1, rules.head_dim).transpose(0, 2, 1, 3).astype(mx.float32)
        if norm is not None:
            scale = mx.rsqrt((heads * heads).mean(-1, keepdims=True) + rules.eps)
            heads = heads * scale * (norm.astype(mx.float32) + rules.shift)
        if rules.wavelengths is not None:
            n = 2 * rules.wavelengths.size
            heads = mx.concatenate([heads[..., :n] * rules.magnitude, heads[..., n:]], axis=-1)
            heads = rope_reference(heads, rules.wavelengths, offset, interleaved=rules.interleaved)
        return heads

    values = v.reshape(*v.shape[:2], -1, rules.head_dim).transpose(0, 2, 1, 3)
    return one(q, rules.q_norm).astype(q.dtype), one(k, rules.k_norm).astype(k.dtype), values
