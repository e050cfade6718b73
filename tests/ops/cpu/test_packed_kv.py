"""Attention over quantized keys and values, against float64 numpy and MLX's own packing."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch, kv
from macllm.ops.attention import MaskArray, attention
from tests.ops.layouts import Layout, laid

Array = np.ndarray


def group_of(head_dim: int) -> int:
    return 64 if head_dim % 64 == 0 else 32


def rows_of(kind: str, shape: tuple[int, ...]) -> Array:
    """Rows with a trait that is hard to quantize."""
    random = np.random.default_rng(1)
    x = random.standard_normal(shape).astype(np.float32)
    match kind:
        case "constant":
            x[...] = x[..., :1]
        case "zero":
            x[...] = 0
        case "huge":
            x *= np.float32(1e30)
        case "subnormal":
            x *= np.float32(1e-41)
        case "about the least scale":
            x *= np.float32(1e-7)
        case "ties":
            x = np.round(x * 3) / 2
        case "two values":
            x = np.where(random.random(shape) < 0.5, -np.abs(x[..., :1]), np.abs(x[..., :1]))
        case "far from zero":
            x = 100 + x * np.float32(1e-6)
    return x.astype(np.float32)


ODD = ["constant", "zero", "huge", "subnormal", "about the least scale", "ties", "two values", "far from zero"]


@pytest.mark.parametrize("head_dim", [32, 64, 72, 80, 96, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_packed_bit_for_bit_as_mlx_packs_them(kernels: ModuleType, bits: int, head_dim: int) -> None:
    group = group_of(head_dim)
    for kind in ["plain", *ODD]:
        rows = mx.array(rows_of(kind, (2, 7, 3, head_dim))).swapaxes(1, 2)
        with dispatch.using("stock"):
            want = kv.quantize(rows, bits, group)
        for got, expected in zip(kernels.pack(rows, bits, group), want, strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(np.array(got).view(np.uint32), np.array(expected).view(np.uint32), kind)


class Case(NamedTuple):
    B: int
    H: int
    K: int
    T: int
    S: int
    D: int
    causal: bool = True
    masked: bool = False
    softcap: float | None = None
    sunk: bool = False


CASES = [
    Case(1, 1, 1, 1, 1, 64),
    Case(1, 2, 1, 1, 17, 32),
    Case(2, 9, 3, 1, 130, 64),
    Case(1, 14, 2, 1, 1100, 64),
    Case(2, 4, 4, 1, 515, 128),
    Case(1, 8, 1, 1, 70, 80),
    Case(2, 5, 1, 1, 33, 72, softcap=2.0, sunk=True),
    Case(1, 6, 2, 1, 600, 96, sunk=True),
    Case(2, 4, 2, 3, 40, 80),
    Case(2, 4, 2, 2, 600, 64, causal=False, masked=True),
    Case(1, 3, 3, 7, 19, 33),
    Case(2, 4, 2, 70, 70, 64),
    Case(1, 6, 2, 65, 300, 80, softcap=1.5),
    Case(2, 2, 1, 31, 140, 72, causal=False, masked=True, sunk=True),
    Case(1, 2, 2, 300, 300, 128, sunk=True),
    Case(1, 4, 2, 20, 20, 96, causal=False),
]


def problem(case: Case, bits: int) -> tuple[mx.array, kv.Quantized, MaskArray, mx.array | None]:
    """Queries, and a slice from the middle of longer packed buffers."""
    random = np.random.default_rng(int(case.H + case.T + case.S + case.D))
    q = random.standard_normal((case.B, case.T, case.H, case.D)).astype(np.float32)
    packed = []
    for _ in range(2):
        whole = mx.array(random.standard_normal((case.B, case.K, case.S + 9, case.D)).astype(np.float32))
        parts = kv.quantize(whole, bits, group_of(case.D))
        packed.append(tuple(part[:, :, 4 : 4 + case.S] for part in parts))
    mask: MaskArray = "causal" if case.causal else None
    if case.masked:
        seen = random.random((case.B, 1, case.T, case.S)) < 0.6
        seen[0, 0, 0] = False
        mask = mx.array(seen)
    sinks = mx.array(random.standard_normal(case.H).astype(np.float32) * 2) if case.sunk else None
    rows = kv.Quantized(packed[0], packed[1], bits, group_of(case.D), case.D)
    return mx.array(q).swapaxes(1, 2), rows, mask, sinks


def expected(case: Case, bits: int) -> Array:
    """Attention by its definition in float64, over the dequantized numbers."""
    q, rows, mask, sinks = problem(case, bits)
    dense = rows.dense(mx.float32)
    k, v = (np.repeat(np.array(x).astype(np.float64), case.H // case.K, 1) for x in (dense.keys, dense.values))
    scores = 0.3 * np.array(q).astype(np.float64) @ k.swapaxes(-1, -2)
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    seen = np.ones((case.T, case.S), bool)
    if isinstance(mask, mx.array):
        seen = np.array(mask)
    elif case.causal:
        seen = np.arange(case.S) <= np.arange(case.S - case.T, case.S)[:, None]
    scores = np.where(seen, scores, -np.inf)
    sunk = np.full((1, case.H, 1, 1), -np.inf) if sinks is None else np.array(sinks).astype(np.float64)[:, None, None]
    top = np.maximum(scores.max(-1, keepdims=True), sunk)
    top = np.where(np.isfinite(top), top, 0)
    p = np.exp(scores - top)
    return p / np.maximum(p.sum(-1, keepdims=True) + np.exp(sunk - top), 1e-300) @ v


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_attention_over_packed_rows_equals_numpys(kernels: ModuleType, case: Case, bits: int) -> None:
    q, rows, mask, sinks = problem(case, bits)
    causal, seen = isinstance(mask, str), mask if isinstance(mask, mx.array) else None
    parts, group = [*rows.keys, *rows.values], rows.group_size
    options = {"mask": seen, "softcap": case.softcap or 0.0, "sinks": sinks}
    got = kernels.attention_packed(q, parts, bits, group, 0.3, causal, **options)
    np.testing.assert_allclose(np.array(got), expected(case, bits), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if not case.masked], ids=lambda c: "-".join(map(str, c)))
def test_native_stock_and_reference_agree(case: Case) -> None:
    q, rows, mask, sinks = problem(case, 8)
    want = expected(case, 8)
    for choice in ("reference", "stock", "native"):
        with dispatch.using(choice):
            got = attention(q, rows, scale=0.3, mask=mask, softcap=case.softcap, sinks=sinks)
        np.testing.assert_allclose(np.array(got), want, rtol=2e-4, atol=2e-5, err_msg=choice)


def test_parts_in_any_layout_are_read_correctly(kernels: ModuleType) -> None:
    q, rows, _, _ = problem(CASES[2], 8)
    turned = [mx.contiguous(part.swapaxes(1, 2)).swapaxes(1, 2) for part in (*rows.keys, *rows.values)]
    got = kernels.attention_packed(q, turned, 8, 64, 0.3, True)
    np.testing.assert_allclose(np.array(got), expected(CASES[2], 8), rtol=1e-5, atol=1e-5)


ROOMS = [Layout((0, 0, 3, 0), (0, 1, 2, 3)), Layout((0, 1, 8, 0), (0, 1, 2, 3))]


@pytest.mark.parametrize("case", [CASES[2], CASES[8], CASES[11]], ids=lambda c: "-".join(map(str, c)))
def test_keys_and_values_may_be_in_separate_buffers(kernels: ModuleType, case: Case) -> None:
    q, rows, _, _ = problem(case, 8)
    keys, values = (
        [laid(part, room) for part in parts] for parts, room in zip((rows.keys, rows.values), ROOMS, strict=True)
    )
    got = kernels.attention_packed(q, [*keys, *values], 8, group_of(case.D), 0.3, True)
    np.testing.assert_allclose(np.array(got), expected(case, 8), rtol=1e-5, atol=1e-5)
    mixed = [keys[0], laid(rows.keys[1], ROOMS[1]), keys[2], *values]  # scales in another layout than their words
    got = kernels.attention_packed(q, mixed, 8, group_of(case.D), 0.3, True)
    np.testing.assert_allclose(np.array(got), expected(case, 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 40])
def test_attention_makes_no_dense_copy_of_a_cache(kernels: ModuleType, length: int) -> None:
    rows = mx.random.normal((1, 2, 8192, 64))
    packed = kv.Quantized(kv.quantize(rows, 8, 64), kv.quantize(-rows, 8, 64), 8, 64, 64)
    q = mx.random.normal((1, 4, length, 64))
    mx.eval(q, packed.keys, packed.values)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attention(q, packed, scale=0.1, mask="causal"))
    assert mx.get_peak_memory() - before <= 4 * q.nbytes


def test_gradients_fall_back_to_mlx() -> None:
    q, rows, mask, _ = problem(CASES[8], 8)
    slope = mx.grad(lambda q: mx.square(attention(q, rows, scale=0.3, mask=mask)).sum())(q)
    with dispatch.using("reference"):
        want = mx.grad(lambda q: mx.square(attention(q, rows, scale=0.3, mask=mask)).sum())(q)
    np.testing.assert_allclose(np.array(slope), np.array(want), rtol=2e-4, atol=2e-5)
