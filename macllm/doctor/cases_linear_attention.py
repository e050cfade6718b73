"""Test cases: linear attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from macllm.ops.linear_attention import State, linear_attention_reference
from macllm.ops.metal import linear_attention

from .case import Arrays, Case, normal, widened


class LinearAttentionShape(NamedTuple):
    """Shapes of queries, keys and values, with as many features as dims."""

    batch: int
    heads: int
    length: int
    dim: int
    timed: bool = False

    def __str__(self) -> str:
        return f"B {self.batch} H {self.heads} L {self.length} D {self.dim}"


LINEAR = (
    LinearAttentionShape(1, 1, 1, 64),
    LinearAttentionShape(2, 2, 75, 40),
    LinearAttentionShape(1, 16, 1, 64, timed=True),
    LinearAttentionShape(1, 16, 512, 64, timed=True),
    LinearAttentionShape(1, 16, 2048, 64, timed=True),
)


def cases(dtype: mx.Dtype) -> Iterator[Case]:
    """A token, a prompt, and gradients."""
    for shape in LINEAR:
        yield _linear(shape, dtype)


def _make_inputs(shape: LinearAttentionShape, dtype: mx.Dtype, seed: int, names: str) -> dict[str, mx.array]:
    size = shape[:4]
    return {name: normal(*size, dtype=dtype, seed=seed + i) for i, name in enumerate(names)}


def _linear(shape: LinearAttentionShape, dtype: mx.Dtype) -> Case:
    def make_inputs(seed: int) -> Arrays:
        arrays = _make_inputs(shape, dtype, seed, "qkv")
        features = {name: mx.abs(arrays[name]) + 0.1 for name in "qk"}
        return {**arrays, **features, "slopes": normal(*shape[:4], dtype=dtype, seed=seed + 3)}

    def kernel(inputs: Arrays) -> list[mx.array]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        start = State.before(q, v)
        out, sums, norm, totals = linear_attention.run(q, k, v, *start, causal=True)
        if shape.length == 1:
            return [out, sums, norm]
        slopes = inputs["slopes"], mx.zeros_like(sums), mx.zeros_like(norm)
        gradients = linear_attention.gradients((q, k, v, *start), slopes, out, totals, causal=True)
        return [out, sums, norm, *gradients[:3]]

    def by_definition(inputs: Arrays) -> list[mx.array]:
        def run(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
            out, state = linear_attention_reference(q, k, v)
            return [out, *state]

        qkv = [inputs["q"], inputs["k"], inputs["v"]]
        if shape.length == 1:
            return run(*qkv)
        outs = run(*qkv)
        slopes = [inputs["slopes"], mx.zeros_like(outs[1]), mx.zeros_like(outs[2])]
        outs, gradients = mx.vjp(run, qkv, slopes)
        return [*outs, *gradients]

    return Case(
        "linear_attention",
        f"{shape}, {'a token' if shape.length == 1 else 'causal, with gradients'}",
        dtype,
        shape.length,
        make_inputs,
        kernel,
        lambda inputs: by_definition(widened(inputs)),
        by_definition,
        lambda inputs, results: {**inputs, "v": results[0]},
        shape.timed,
    )
