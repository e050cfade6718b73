"""What each kernel is tried on: the same work by the kernel and by MLX's own operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.qkv_post import Rules as HeadRules

from . import kv_decode, launch, qkv_post, qmv, sample

DTYPES = (mx.float16, mx.bfloat16, mx.float32)
ROUNDING = {mx.float32: 2.0**-16, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}
"""How far results may lie apart, of the largest number."""


@dataclass(frozen=True)
class Case:
    """One piece of work: `ours` and `stock` give the same arrays, and `timed` says that their speed matters."""

    op: str
    label: str
    dtype: mx.Dtype
    ours: Callable[[], list[mx.array]]
    stock: Callable[[], list[mx.array]]
    timed: bool

    def apart(self) -> float:
        """The largest difference between the two, in units of what is allowed."""
        worst = 0.0
        for a, b in zip(self.ours(), self.stock(), strict=True):
            wide = b.astype(mx.float32)
            bound = ROUNDING[self.dtype] * mx.maximum(1.0, mx.abs(wide).max())
            difference = mx.abs(a.astype(mx.float32) - wide).max() / bound
            worst = max(worst, float("inf") if mx.isnan(difference).item() else float(difference.item()))
        return worst


def cases() -> Iterator[Case]:
    """All of them: shapes of 1, odd ones, more than one threadgroup; those of real models are timed."""
    for dtype in DTYPES:
        yield from _heads(dtype)
        yield from _decoding(dtype)
        yield from _products(dtype)
        yield from _experts(dtype)
        yield from _drawing(dtype)


def _random(*shape: int, dtype: mx.Dtype, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def _heads(dtype: mx.Dtype) -> Iterator[Case]:
    for batch, length, heads, kv_heads, dim, timed in ((1, 1, 1, 1, 64, False), (2, 7, 3, 1, 80, False), (1, 1, 32, 8, 128, True)):
        q = _random(batch, length, heads * dim, dtype=dtype)
        k, v = (_random(batch, length, kv_heads * dim, dtype=dtype, seed=s) for s in (1, 2))
        weights = {f"{n}_norm": _random(dim, dtype=dtype, seed=s) for n, s in (("q", 3), ("k", 4))}
        waves = 10000.0 ** (mx.arange(dim // 2) / (dim // 2))
        rules, offset = HeadRules(dim, **weights, wavelengths=waves), mx.array([41])

        def stock(q: mx.array = q, k: mx.array = k, v: mx.array = v, rules: HeadRules = rules) -> list[mx.array]:
            split = [x.reshape(*x.shape[:2], -1, rules.head_dim).transpose(0, 2, 1, 3) for x in (q, k, v)]
            for i, norm in enumerate((rules.q_norm, rules.k_norm)):
                x = mx.fast.rms_norm(split[i], norm, rules.eps)
                waves = rules.wavelengths
                split[i] = mx.fast.rope(x, rules.head_dim, traditional=False, base=None, scale=1.0, offset=41, freqs=waves)
            return split

        def ours(q: mx.array = q, k: mx.array = k, v: mx.array = v, rules: HeadRules = rules, at: mx.array = offset) -> list[mx.array]:
            return launch(qkv_post.forward(q, k, v, rules, at))

        yield Case("qkv_post", f"B {batch} L {length} H {heads}/{kv_heads} D {dim}", dtype, ours, stock, timed)


def _decoding(dtype: mx.Dtype) -> Iterator[Case]:
    for batch, length, count, timed in ((1, 1, 1, False), (2, 3, 301, False), (1, 1, 8192, True)):
        q = _random(batch, 32, length, 128, dtype=dtype)
        room = [_random(batch, 8, count + 64, 128, dtype=dtype, seed=s) for s in (1, 2)]
        k, v = (x[:, :, :count] for x in room)
        rules = kv_decode.Rules(128**-0.5, True, mx.array([0]))

        def dense(q: mx.array = q, k: mx.array = k, v: mx.array = v, rules: kv_decode.Rules = rules) -> list[mx.array]:
            return [kv_decode.run(q, {"keys": k, "values": v}, rules)]

        def fast(q: mx.array = q, k: mx.array = k, v: mx.array = v) -> list[mx.array]:
            return [mx.fast.scaled_dot_product_attention(q, k, v, scale=128**-0.5, mask="causal")]

        yield Case("kv_decode", f"B {batch} L {length} S {count}", dtype, dense, fast, timed)
        packed = [[x[:, :, :count] for x in mx.quantize(rows, group_size=64, bits=4)] for rows in room]
        names = ("words", "scales", "biases")
        parts = {f"{n}_{part}": x for n, some in zip("kv", packed, strict=True) for part, x in zip(names, some, strict=True)}

        def few_bits(q: mx.array = q, parts: dict[str, mx.array] = parts, rules: kv_decode.Rules = rules) -> list[mx.array]:
            return [kv_decode.run(q, parts, rules, key_bits=4, value_bits=4)]

        def unfused(q: mx.array = q, packed: list[list[mx.array]] = packed) -> list[mx.array]:
            k, v = (mx.dequantize(*x, group_size=64, bits=4) for x in packed)
            return [mx.fast.scaled_dot_product_attention(q, k, v, scale=128**-0.5, mask="causal")]

        yield Case("kv_decode_packed", f"B {batch} L {length} S {count}, 4 bit", dtype, few_bits, unfused, timed)


def _matrix(*shape: int, dtype: mx.Dtype, seed: int) -> qmv.Matrix:
    return qmv.Matrix(*mx.quantize(_random(*shape, dtype=dtype, seed=seed), group_size=64, bits=4), 4, 64)


def _product(x: mx.array, w: qmv.Matrix) -> mx.array:
    return mx.quantized_matmul(x, w.words, w.scales, w.biases, group_size=w.group_size, bits=w.bits)


def _products(dtype: mx.Dtype) -> Iterator[Case]:
    for rows, count, width, timed in ((1, 1, 64, False), (5, 37, 192, False), (1, 8192, 2048, True)):
        x, norm = _random(rows, width, dtype=dtype), qmv.Norm(_random(width, dtype=dtype, seed=1), 1e-5)
        gate, up = (_matrix(count, width, dtype=dtype, seed=s) for s in (2, 3))

        def ours(x: mx.array = x, norm: qmv.Norm = norm, gate: qmv.Matrix = gate, up: qmv.Matrix = up) -> list[mx.array]:
            return [qmv.product(x, gate, norm=norm, up=up, activation="silu")]

        def stock(x: mx.array = x, norm: qmv.Norm = norm, gate: qmv.Matrix = gate, up: qmv.Matrix = up) -> list[mx.array]:
            y = mx.fast.rms_norm(x, norm.weight, norm.eps)
            opened = _product(y, gate)
            return [opened * mx.sigmoid(opened) * _product(y, up)]

        yield Case("qmv", f"{rows} x {width} to {count}, norm and SwiGLU", dtype, ours, stock, timed)


def _experts(dtype: mx.Dtype) -> Iterator[Case]:
    for tokens, top, hidden, width, timed in ((1, 2, 64, 128, False), (3, 2, 128, 192, False), (1, 8, 768, 2048, True)):
        x = _random(tokens, width, dtype=dtype)
        gate, up = (_matrix(16, hidden, width, dtype=dtype, seed=s) for s in (2, 3))
        down = _matrix(16, width, hidden, dtype=dtype, seed=4)
        chosen = mx.argsort(_random(tokens, 16, dtype=mx.float32, seed=5), axis=-1)[:, :top].astype(mx.int32)
        weights = mx.softmax(_random(tokens, top, dtype=mx.float32, seed=6), axis=-1)
        matrices = gate, up, down

        def ours(
            x: mx.array = x,
            m: tuple[qmv.Matrix, ...] = matrices,
            chosen: mx.array = chosen,
            weights: mx.array = weights,
        ) -> list[mx.array]:
            h = launch(qmv.gate_up(x, m[0], m[1], chosen, "silu"))[0]
            return launch(qmv.down_combine(h, m[2], chosen, weights))

        def stock(
            x: mx.array = x,
            m: tuple[qmv.Matrix, ...] = matrices,
            chosen: mx.array = chosen,
            weights: mx.array = weights,
        ) -> list[mx.array]:
            def each(x: mx.array, w: qmv.Matrix) -> mx.array:
                return mx.gather_qmm(x, w.words, w.scales, w.biases, rhs_indices=chosen, group_size=64, bits=4)

            rows = x[:, None, None]
            opened = each(rows, m[0])
            h = opened * mx.sigmoid(opened) * each(rows, m[1])
            return [(each(h, m[2])[:, :, 0] * weights[..., None]).sum(1).astype(x.dtype)]

        yield Case("moe", f"{tokens} tokens, {top} of 16 experts, {width} x {hidden}", dtype, ours, stock, timed)


def _drawing(dtype: mx.Dtype) -> Iterator[Case]:
    for vocabulary, timed in ((33, False), (151936, True)):
        logits = 3 * _random(1, vocabulary, dtype=dtype)
        filters, uniform = sample.Filters(0.8, top_k=20), mx.array([0.4])

        def ours(logits: mx.array = logits, filters: sample.Filters = filters, u: mx.array = uniform) -> list[mx.array]:
            return sample.draw(logits, u, filters)[1:2]

        def stock(logits: mx.array = logits, filters: sample.Filters = filters, u: mx.array = uniform) -> list[mx.array]:
            wide = logits.astype(mx.float32)
            best = mx.argsort(-wide, axis=-1)[:, : filters.top_k]
            some = mx.take_along_axis(wide, best, axis=-1)
            reached = mx.cumsum(mx.softmax(some / filters.temperature, axis=-1), axis=-1)
            place = (reached <= u[:, None]).sum(-1, keepdims=True)
            return [(mx.take_along_axis(some, place, axis=-1) - mx.logsumexp(wide, axis=-1, keepdims=True))[:, 0]]

        yield Case("sample", f"{vocabulary} logits, top-k", dtype, ours, stock, timed)
