"""Fused QK norm and RoPE against the reference, `mx.quantize` and the reference's gradients.

Slow: all sizes in all types, and all packings of all heads.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.head_params import HeadParams, Packing
from macllm.ops.metal.qk_norm_rope import qkv_post as plan
from macllm.ops.qk_norm_rope import qk_norm_rope_reference
from macllm.ops.weights import NormWeight, RMSNormWeight
from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import as_array
from tests.simulator.run import check

TYPES = [mx.float32, mx.float16, mx.bfloat16]
ROUNDING = {mx.float32: 2.0**-20, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def wide(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def projected(size: tuple[int, int], heads: tuple[int, int], dim: int, dtype: mx.Dtype) -> list[mx.array]:
    return [random(*size, n * dim, dtype=dtype, seed=i) for i, n in enumerate((heads[0], heads[1], heads[1]))]


def made(dim: int, pairs: int, *, normed: bool = True, shift: float = 0.0, **options: Any) -> HeadParams:
    norms = [RMSNormWeight(random(dim, seed=seed), 1e-5, shift) if normed else None for seed in (7, 8)]
    waves = mx.array(10000.0 ** (np.arange(pairs) / max(pairs, 1)), mx.float32) if pairs else None
    return HeadParams(dim, *norms, waves, **options)


def turned(x: mx.array, norm: NormWeight, params: HeadParams, offset: np.ndarray) -> np.ndarray:
    """(B, L, H * D) -> (B, H, L, D) in float64, from the definitions."""
    y = wide(x).reshape(*x.shape[:2], -1, params.head_dim).transpose(0, 2, 1, 3)
    if isinstance(norm, RMSNormWeight):
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + norm.eps) * (wide(norm.weight) + norm.shift)
    if params.wavelengths is None:
        return y
    n = params.wavelengths.size
    first = np.arange(n) * 2 if params.interleaved else np.arange(n)
    second = first + (1 if params.interleaved else n)
    angle = (offset.reshape(-1, 1, 1, 1) + np.arange(x.shape[1])[:, None]) / wide(params.wavelengths)
    rotated = params.magnitude * (y[..., first] + 1j * y[..., second]) * np.exp(1j * angle)
    y[..., first], y[..., second] = rotated.real, rotated.imag
    return y


CASES = [
    pytest.param((1, 1), (4, 2), made(64, 32), [9], id="a token"),
    pytest.param((2, 5), (3, 1), made(40, 20, interleaved=True), [0], id="neighbours, an odd size"),
    pytest.param((2, 33), (2, 2), made(80, 16, magnitude=1.25), [3, -2], id="a part of the head, padded rows"),
    pytest.param((1, 7), (6, 3), made(48, 9, interleaved=True, shift=1.0), [100], id="pairs that fill no simdgroup"),
    pytest.param((3, 2), (1, 1), made(8, 4, normed=False), [5, 6, 7], id="a tiny head"),
    pytest.param((1, 3), (2, 1), made(128, 0), [0], id="no rotation"),
    pytest.param((1, 3), (5, 1), made(256, 128), [70000], id="a large head far away"),
]


@pytest.mark.parametrize(("size", "heads", "params", "offset", "dtype"), sweep(CASES, TYPES))
def test_heads_equal_the_definition(
    size: tuple[int, int], heads: tuple[int, int], params: HeadParams, offset: list[int], dtype: mx.Dtype
) -> None:
    q, k, v = projected(size, heads, params.head_dim, dtype)
    result = check(plan.forward(q, k, v, params, mx.array(offset)))
    assert result.faults == []
    wants = [turned(q, params.q_norm, params, np.array(offset)), turned(k, params.k_norm, params, np.array(offset))]
    wants.append(wide(v).reshape(*size, heads[1], -1).transpose(0, 2, 1, 3))
    reference = qk_norm_rope_reference(q, k, v, params, mx.array(offset))
    far = 1 + abs(max(offset)) / 64 if params.wavelengths is not None else 1  # an angle's rounding grows with it
    for got, want, same in zip(result.outputs, wants, reference, strict=True):
        bound = {"rtol": 0, "atol": (ROUNDING[dtype] + far * 2.0**-19) * max(1.0, np.abs(want).max())}
        np.testing.assert_allclose(wide(as_array(got, dtype)), want, **bound)
        np.testing.assert_allclose(wide(same), want, **bound)


@pytest.mark.parametrize(
    ("dim", "bits", "group", "dtype"), sweep([64, 40, 128], [(4, 32), (8, 64), (4, 64), (8, 128), (2, 32)], TYPES)
)
def test_packed_keys_and_values_equal_mlxs(dim: int, bits: int, group: int, dtype: mx.Dtype) -> None:
    q, k, v = projected((2, 3), (4, 2), dim, dtype)
    params, offset = made(dim, dim // 2), mx.array([4])
    dense = [as_array(x, dtype) for x in check(plan.forward(q, k, v, params, offset)).outputs]
    result = check(plan.packed(q, k, v, params, offset, Packing(bits, group)))
    assert result.faults == []
    assert np.array_equal(wide(as_array(result.outputs[0], dtype)), wide(dense[0]))
    for rows, packed in ((dense[1], result.outputs[1:4]), (dense[2], result.outputs[4:])):
        padded = mx.pad(rows, [(0, 0)] * 3 + [(0, -dim % group)])
        for got, want in zip(packed, mx.quantize(padded, group_size=group, bits=bits), strict=True):
            assert np.array_equal(wide(as_array(got, want.dtype)), wide(want))


@pytest.mark.parametrize(("size", "heads", "params", "offset"), CASES)
def test_gradients_equal_the_references(
    size: tuple[int, int], heads: tuple[int, int], params: HeadParams, offset: list[int]
) -> None:
    given = projected(size, heads, params.head_dim, mx.float32)
    norms = [n.weight for n in (params.q_norm, params.k_norm) if isinstance(n, RMSNormWeight)]
    cotangents = [
        random(size[0], n, size[1], params.head_dim, seed=20 + n + i) for i, n in enumerate((*heads, heads[1]))
    ]

    def run(q: mx.array, k: mx.array, v: mx.array, *norms: mx.array) -> list[mx.array]:
        named = zip(("q_norm", "k_norm"), norms, strict=False)
        changed = {name: getattr(params, name)._replace(weight=weight) for name, weight in named}
        return list(qk_norm_rope_reference(q, k, v, params._replace(**changed), mx.array(offset)))

    wants = mx.vjp(run, [*given, *norms], cotangents)[1]
    arrays = dict(zip(("q", "k", "dq", "dk", "dv"), [*given[:2], *cotangents], strict=True))
    result = check(plan.backward(arrays, params, mx.array(offset)))
    assert result.faults == []
    got = result.outputs[:3]
    if norms:
        parts = result.outputs[3].sum(0)
        got = [*got, parts[: heads[0]].sum(0), parts[heads[0] :].sum(0)]
    for one, want in zip(got, wants, strict=True):
        far = 1 + abs(max(offset)) / 64
        np.testing.assert_allclose(one, np.array(want), rtol=0, atol=far * 2e-6 * max(1.0, float(mx.abs(want).max())))
