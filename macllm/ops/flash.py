"""Flash attention and its gradients by our Metal kernels (Dao et al. 2022, arXiv:2205.14135)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx

from . import dispatch
from .attention_mask import AttentionMask
from .kv import KV, Dense, Quantized
from .metal.attention import flash as prefill
from .metal.attention import kv_decode as decode


def flash(
    q: mx.array, kv: KV, mask: AttentionMask, *, scale: float, softcap: float, sinks: mx.array | None
) -> mx.array | None:
    """`attention` by our Metal kernels: (B, H, L, D) -> (B, H, L, D); None if none supports it."""
    if not _supports(q, kv):
        return None
    decodes = _decodes(q, mask)
    if decodes:
        op, size = _decode_op(kv), _count(kv)
        ops = [op]
    else:
        op, size = _prefill_op(kv, mask), q.shape[2]
        ops = [op, _backward_op(mask)] if isinstance(kv, Dense) and not mask.is_cached else [op]
    if not all([dispatch.metal(each, q.dtype, size) for each in ops]):
        return None
    segments = mask.segment_ids(_count(kv))
    params = prefill.FlashParams(scale, mask.causal, mask.firsts, mask.window, softcap, sinks, mask.chunk, segments)
    run = _decode if decodes else _prefill
    return dispatch.attempt(op, lambda: run(q, kv, params))


def _decodes(q: mx.array, mask: AttentionMask) -> bool:
    """True for the decode kernel's inputs: few queries over a cache, without chunks or right padding."""
    return mask.is_cached and not mask.chunk and mask.lengths is None and decode.supports(q)


def _decode_op(kv: KV) -> str:
    return "kv_decode" if isinstance(kv, Dense) else "kv_decode_packed"


def _prefill_op(kv: KV, mask: AttentionMask) -> str:
    """Op name of a prefill; a separate op where MLX's attention would need a dense mask."""
    packed = "" if isinstance(kv, Dense) else "_packed"
    return f"flash_prefill{packed}{'_masked' if mask.is_masked else ''}"


def _backward_op(mask: AttentionMask) -> str:
    return f"flash_backward{'_masked' if mask.is_masked else ''}"


def _decode(q: mx.array, kv: KV, params: prefill.FlashParams) -> mx.array:
    if isinstance(kv, Dense):
        return decode.run(q, {"keys": kv.keys, "values": kv.values}, params)
    return decode.run(q, _packed_parts(kv), params, key_bits=kv.bits, value_bits=kv.bits)


def _prefill(q: mx.array, kv: KV, params: prefill.FlashParams) -> mx.array:
    if isinstance(kv, Dense):
        return _differentiable(q, kv, params)
    return prefill.run(q, _packed_parts(kv), params, key_bits=kv.bits, value_bits=kv.bits)[0]


def _packed_parts(kv: Quantized) -> dict[str, mx.array]:
    names = ("words", "scales", "biases")
    parts = {f"k_{name}": part for name, part in zip(names, kv.keys, strict=True)}
    return parts | {f"v_{name}": part for name, part in zip(names, kv.values, strict=True)}


def _count(kv: KV) -> int:
    return (kv.keys if isinstance(kv, Dense) else kv.keys[0]).shape[2]


def _supports(q: mx.array, kv: KV) -> bool:
    if not prefill.supports(q):
        return False
    if isinstance(kv, Dense):
        return kv.keys.shape == kv.values.shape and q.dtype == kv.keys.dtype == kv.values.dtype
    return kv.bits in (4, 8) and q.dtype == kv.keys[1].dtype == kv.values[1].dtype


def _differentiable(q: mx.array, kv: Dense, params: prefill.FlashParams) -> mx.array:
    def run(q: mx.array, keys: mx.array, values: mx.array, *sinks: mx.array) -> tuple[mx.array, ...]:
        return tuple(prefill.run(q, {"keys": keys, "values": values}, params))

    def gradients(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        (q, keys, values, *sinks), (out, lse), dout = primals, outputs, cotangents[0]
        arrays = {"q": q, "keys": keys, "values": values, "out": out, "lse": lse, "dout": dout}
        found = prefill.run_vjp(arrays, replace(params, sinks=None))
        return *found, *(_sink_gradient(one, out, lse, dout) for one in sinks)

    attend: Any = mx.custom_function(run)
    attend.vjp(gradients)
    return attend(q, kv.keys, kv.values, *([] if params.sinks is None else [params.sinks]))[0]


def _sink_gradient(sinks: mx.array, out: mx.array, lse: mx.array, dout: mx.array) -> mx.array:
    """Gradient of the sinks (H,): a sink's share of a row's weights is lost to the row's output."""
    taken = mx.exp(sinks.astype(mx.float32)[:, None] - lse)
    along = (dout.astype(mx.float32) * out.astype(mx.float32)).sum(-1)
    return -(taken * along).sum((0, 2)).astype(sinks.dtype)
