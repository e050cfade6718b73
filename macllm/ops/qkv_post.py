"""What comes between the projections and attention: heads' norm, rotary positions, heads before positions."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from . import dispatch
from .metal import launch
from .metal.qk_norm_rope import qkv_post as plan
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


class Packed(NamedTuple):
    """Queries (B, H, L, D), and keys and values as `mx.quantize` packs them: words, scales and biases."""

    queries: mx.array
    keys: tuple[mx.array, ...]
    values: tuple[mx.array, ...]


def qkv_post(
    q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: int | mx.array
) -> tuple[mx.array, mx.array, mx.array] | None:
    """Projections (B, L, H * D) and twice (B, L, K * D) -> (B, H, L, D) and twice (B, K, L, D).

    None where no kernel does all of it at once. `offset` is the position of the first token, one for all rows or (B,).
    """
    if not _serves("qkv_post", q, k, rules):
        return None
    at = mx.array(offset).reshape(-1)
    names = [name for name in ("q_norm", "k_norm") if getattr(rules, name) is not None]

    def run(q: mx.array, k: mx.array, v: mx.array, *norms: mx.array) -> tuple[mx.array, ...]:
        return tuple(launch(plan.forward(q, k, v, rules, at)))

    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], _: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        arrays: dict[str, mx.array] = {"q": primals[0], "k": primals[1]}
        arrays |= zip(("dq", "dk", "dv"), cotangents, strict=True)
        dq, dk, dv, parts = launch(plan.backward(arrays, rules, at))
        heads, sums, norms = primals[0].shape[2] // rules.head_dim, parts.sum(0), primals[3:]
        of_norms = {"q_norm": sums[:heads].sum(0), "k_norm": sums[heads:].sum(0)}
        return dq, dk, dv, *(of_norms[name].astype(norm.dtype) for name, norm in zip(names, norms, strict=True))

    made: Any = mx.custom_function(run)
    made.vjp(gradients)
    return dispatch.attempt("qkv_post", lambda: tuple(made(q, k, v, *(getattr(rules, name) for name in names))))


def qkv_post_packed(
    q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: int | mx.array, packing: tuple[int, int]
) -> Packed | None:
    """The same with keys and values packed for a cache, in bits and groups as `packing` says. It has no gradient."""
    bits, group_size = packing
    if not _serves("qkv_post_packed", q, k, rules):
        return None
    call = plan.packed(q, k, v, rules, mx.array(offset).reshape(-1), bits, group_size)
    made = dispatch.attempt("qkv_post_packed", lambda: launch(call))
    return None if made is None else Packed(made[0], tuple(made[1:4]), tuple(made[4:]))


def _serves(op: str, q: mx.array, k: mx.array, rules: Rules) -> bool:
    return plan.serves(q, k, rules) and dispatch.metal(op, q.dtype, q.shape[0] * q.shape[1])


def qkv_post_reference(
    q: mx.array, k: mx.array, v: mx.array, rules: Rules, offset: int | mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """`qkv_post` from its definition: (B, L, H * D) and twice (B, L, K * D) -> (B, H, L, D) and twice (B, K, L, D)."""

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
