"""Attention and its gradients without the scores' memory (Dao et al. 2022, arXiv:2205.14135), by our Metal kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx

from . import dispatch
from .kv import KV, Dense
from .metal.attention import flash as prefill
from .metal.attention import kv_decode as decode
from .sight import Sight


def flash(
    q: mx.array, kv: KV, sight: Sight, *, scale: float, softcap: float, sinks: mx.array | None
) -> mx.array | None:
    """`attention` by our Metal kernels: (B, H, L, D) -> (B, H, L, D); None where none serves."""
    op, size = _op(q, kv, sight)
    also = [op.replace("prefill", "backward")] if isinstance(kv, Dense) and not sight.is_cached else []
    if not _fits(q, kv) or not all([dispatch.metal(each, q.dtype, size) for each in (op, *also)]):
        return None
    segments = sight.segments(_count(kv))
    rules = prefill.Rules(scale, sight.causal, sight.firsts, sight.window, softcap, sinks, sight.chunk, segments)
    return dispatch.attempt(op, lambda: _run(op, q, kv, rules))


def _run(op: str, q: mx.array, kv: KV, rules: prefill.Rules) -> mx.array:
    if isinstance(kv, Dense):
        if op.startswith("flash"):
            return _differentiable(q, kv, rules)
        return decode.run(q, {"keys": kv.keys, "values": kv.values}, rules)
    names = ("words", "scales", "biases")
    parts = {f"k_{name}": part for name, part in zip(names, kv.keys, strict=True)}
    parts |= {f"v_{name}": part for name, part in zip(names, kv.values, strict=True)}
    if op.startswith("flash"):
        return prefill.run(q, parts, rules, key_bits=kv.bits, value_bits=kv.bits)[0]
    return decode.run(q, parts, rules, key_bits=kv.bits, value_bits=kv.bits)


def _op(q: mx.array, kv: KV, sight: Sight) -> tuple[str, int]:
    """The op's name for `dispatch`, and the size that counts. What MLX needs a mask for is an op of its own."""
    packed = "" if isinstance(kv, Dense) else "_packed"
    if sight.is_cached and not sight.chunk and sight.lengths is None and decode.serves(q):
        return f"kv_decode{packed}", _count(kv)
    return f"flash_prefill{packed}{'_masked' if sight.is_masked else ''}", q.shape[2]


def _count(kv: KV) -> int:
    return (kv.keys if isinstance(kv, Dense) else kv.keys[0]).shape[2]


def _fits(q: mx.array, kv: KV) -> bool:
    if not prefill.serves(q):
        return False
    if isinstance(kv, Dense):
        return kv.keys.shape == kv.values.shape and q.dtype == kv.keys.dtype == kv.values.dtype
    return kv.bits in (4, 8) and q.dtype == kv.keys[1].dtype == kv.values[1].dtype


def _differentiable(q: mx.array, kv: Dense, rules: prefill.Rules) -> mx.array:
    def run(q: mx.array, keys: mx.array, values: mx.array, *sinks: mx.array) -> tuple[mx.array, ...]:
        return tuple(prefill.run(q, {"keys": keys, "values": values}, rules))

    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (q, keys, values, *sinks), (out, lse), dout = primals, outputs, cotangents[0]
        given = {"q": q, "keys": keys, "values": values, "out": out, "lse": lse, "dout": dout}
        found = prefill.run_vjp(given, replace(rules, sinks=None))
        return *found, *(_of_sinks(one, out, lse, dout) for one in sinks)

    attend: Any = mx.custom_function(run)
    attend.vjp(gradients)
    return attend(q, kv.keys, kv.values, *([] if rules.sinks is None else [rules.sinks]))[0]


def _of_sinks(sinks: mx.array, out: mx.array, lse: mx.array, dout: mx.array) -> mx.array:
    """Their gradient (H,): what a sink takes of a row's weight, it takes from the row's result."""
    taken = mx.exp(sinks.astype(mx.float32)[:, None] - lse)
    along = (dout.astype(mx.float32) * out.astype(mx.float32)).sum(-1)
    return -(taken * along).sum((0, 2)).astype(sinks.dtype)
