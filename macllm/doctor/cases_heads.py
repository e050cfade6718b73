"""Test cases: QK norm, RoPE and packing of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from macllm.ops.head_params import HeadParams, Packing
from macllm.ops.metal import launch
from macllm.ops.metal.qk_norm_rope import qkv_post
from macllm.ops.qk_norm_rope import qk_norm_rope_reference
from macllm.ops.weights import RMSNormWeight

from .case import Arrays, Case, group_size, normal, widened

AT, BITS = 41, 4


class HeadShape(NamedTuple):
    """Shapes of queries, keys and values."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    dim: int
    timed: bool = False

    def __str__(self) -> str:
        return f"B {self.batch} L {self.length} H {self.heads}/{self.kv_heads} D {self.dim}"


SHAPES = (
    HeadShape(1, 1, 1, 1, 64),
    HeadShape(2, 7, 3, 1, 96),
    HeadShape(1, 33, 4, 2, 256),
    HeadShape(1, 1, 32, 8, 128, timed=True),
    HeadShape(1, 16, 32, 8, 128, timed=True),
    HeadShape(1, 512, 32, 8, 128, timed=True),
    HeadShape(1, 2048, 32, 8, 128, timed=True),
)


def cases(dtype: mx.Dtype) -> Iterator[Case]:
    """Norm, rotation and transposition, with and without packing."""
    for shape in SHAPES:
        yield _dense(shape, dtype)
        yield _packed(shape, dtype)
        if not shape.timed:
            yield _gradients(shape, dtype)


def _make_inputs(shape: HeadShape, dtype: mx.Dtype, seed: int) -> dict[str, mx.array]:
    widths = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    rows = {
        name: normal(shape.batch, shape.length, n * shape.dim, dtype=dtype, seed=seed + i)
        for i, (name, n) in enumerate(widths.items())
    }
    return rows | {f"{name}_norm": normal(shape.dim, dtype=dtype, seed=3 + i) for i, name in enumerate("qk")}


def _params(inputs: Arrays) -> HeadParams:
    dim = inputs["q_norm"].size
    waves = 10000.0 ** (mx.arange(dim // 2) / (dim // 2))
    q_norm, k_norm = (RMSNormWeight(inputs[name], eps=1e-5) for name in ("q_norm", "k_norm"))
    return HeadParams(dim, q_norm, k_norm, waves)


def _qkv(inputs: Arrays) -> tuple[mx.array, mx.array, mx.array]:
    return inputs["q"], inputs["k"], inputs["v"]


def _reference(inputs: Arrays) -> list[mx.array]:
    wide = widened(inputs)
    return list(qk_norm_rope_reference(*_qkv(wide), _params(wide), AT))


def _stock(inputs: Arrays) -> list[mx.array]:
    params, heads = _params(inputs), []
    for x, norm in zip(_qkv(inputs), (params.q_norm, params.k_norm, None), strict=True):
        one = x.reshape(*x.shape[:2], -1, params.head_dim).transpose(0, 2, 1, 3)
        if isinstance(norm, RMSNormWeight):
            one = mx.fast.rms_norm(one, norm.weight, norm.eps)
            options = {"traditional": False, "base": None, "scale": 1.0, "offset": AT, "freqs": params.wavelengths}
            one = mx.fast.rope(one, params.head_dim, **options)
        heads.append(one)
    return heads


def _chain(inputs: Arrays, results: list[mx.array]) -> Arrays:
    q = results[0]
    return {**inputs, "q": q.swapaxes(1, 2).reshape(inputs["q"].shape)}


def _dense(shape: HeadShape, dtype: mx.Dtype) -> Case:
    def kernel(inputs: Arrays) -> list[mx.array]:
        return launch(qkv_post.forward(*_qkv(inputs), _params(inputs), mx.array([AT])))

    return Case(
        "qkv_post",
        str(shape),
        dtype,
        shape.batch * shape.length,
        lambda seed: _make_inputs(shape, dtype, seed),
        kernel,
        _reference,
        _stock,
        _chain,
        shape.timed,
    )


def _packed(shape: HeadShape, dtype: mx.Dtype) -> Case:
    group = group_size(shape.dim)

    def kernel(inputs: Arrays) -> list[mx.array]:
        return launch(qkv_post.packed(*_qkv(inputs), _params(inputs), mx.array([AT]), Packing(BITS, group)))

    def reference(inputs: Arrays) -> list[mx.array]:
        q, *rows = _reference(inputs)
        return [q, *(mx.zeros_like(one) for one in rows)]

    def stock(inputs: Arrays) -> list[mx.array]:
        q, *rows = _stock(inputs)
        return [q, *(part for one in rows for part in mx.quantize(one, group_size=group, bits=BITS))]

    def compared(inputs: Arrays, results: list[mx.array]) -> list[mx.array]:
        q, *packed = results
        _, *rows = _reference(inputs)
        return [q, *(_beyond(one, packed[3 * i : 3 * i + 3]) for i, one in enumerate(rows))]

    return Case(
        "qkv_post_packed",
        f"{shape}, {BITS} bit",
        dtype,
        shape.batch * shape.length,
        lambda seed: _make_inputs(shape, dtype, seed),
        kernel,
        reference,
        stock,
        _chain,
        shape.timed,
        compared,
    )


def _gradients(shape: HeadShape, dtype: mx.Dtype) -> Case:
    names: tuple[str, ...] = ("q", "k", "v", "q_norm", "k_norm")

    def make_inputs(seed: int) -> Arrays:
        arrays = _make_inputs(shape, dtype, seed)
        slopes = {
            f"d{name}": normal(*x.shape, dtype=dtype, seed=seed + 5 + i) for i, (name, x) in enumerate(arrays.items())
        }
        heads = {name: slopes[name].reshape(*slopes[name].shape[:2], -1, shape.dim) for name in ("dq", "dk", "dv")}
        return {**arrays, **{name: mx.contiguous(x.swapaxes(1, 2)) for name, x in heads.items()}}

    def kernel(inputs: Arrays) -> list[mx.array]:
        arrays = {name: inputs[name] for name in ("q", "k", "dq", "dk", "dv")}
        *gradients, parts = launch(qkv_post.backward(arrays, _params(inputs), mx.array([AT])))
        sums = parts.sum(0)
        return [*gradients, sums[: shape.heads].sum(0), sums[shape.heads :].sum(0)]

    def reference(inputs: Arrays) -> list[mx.array]:
        wide = widened(inputs)

        def run(*arrays: mx.array) -> list[mx.array]:
            named: Arrays = dict(zip(names, arrays, strict=True))
            return list(qk_norm_rope_reference(*_qkv(named), _params(named), AT))

        return mx.vjp(run, [wide[name] for name in names], [wide[name] for name in ("dq", "dk", "dv")])[1]

    return Case(
        "qkv_post",
        f"{shape}, gradients",
        dtype,
        shape.batch * shape.length,
        make_inputs,
        kernel,
        reference,
        reference,
        lambda inputs, results: {**inputs, "q": results[0]},
    )


def _beyond(rows: mx.array, packed: list[mx.array]) -> mx.array:
    """Error of each packed group beyond 1.1 times that of mx.quantize, and a tenth of a step."""
    group = group_size(rows.shape[-1])

    def grouped(x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:-1], -1, group)

    def missed(words: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        parts = (x.astype(mx.float32) for x in (scales, biases))
        return mx.abs(grouped(mx.dequantize(words, *parts, group_size=group, bits=BITS) - rows)).max(-1)

    step = (grouped(rows).max(-1) - grouped(rows).min(-1)) / (2**BITS - 1)
    allowed = 1.1 * missed(*mx.quantize(rows, group_size=group, bits=BITS)) + 0.1 * step
    return mx.repeat(mx.maximum(missed(*packed) - allowed, 0), group, axis=-1)
