"""Native attention against its definition in float64 numpy, forward and every gradient."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from tests.ops.layouts import CACHED, PROJECTED, TURNED, WIDENED, Layout, apart, laid

Array = np.ndarray


class Case(NamedTuple):
    B: int
    H: int
    K: int
    T: int
    S: int
    D: int
    causal: bool = False
    window: int = 0
    masked: bool = False
    softcap: float = 0.0
    sunk: bool = False
    chunk: int = 0
    begin: int = 0


CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 2, 1, 1, 17, 16),
    Case(2, 4, 2, 5, 5, 20, causal=True),
    Case(1, 3, 3, 7, 19, 33, causal=True),
    Case(1, 2, 2, 70, 70, 64, causal=True),
    Case(2, 4, 1, 33, 65, 8, causal=True, window=9),
    Case(1, 2, 2, 129, 129, 16, causal=True, window=20),
    Case(2, 2, 1, 31, 40, 24, masked=True),
    Case(2, 2, 2, 18, 18, 16, causal=True, masked=True),
    Case(2, 4, 2, 1, 130, 64, causal=True, window=50),
    Case(1, 8, 1, 1, 33, 80, causal=True),
    Case(2, 4, 2, 3, 40, 20, causal=True, masked=True),
    Case(1, 1, 1, 40, 2100, 16, causal=True),
    Case(1, 2, 1, 1, 17, 16, softcap=0.7),
    Case(2, 4, 2, 1, 130, 64, causal=True, window=50, softcap=50.0),
    Case(1, 2, 2, 70, 70, 33, causal=True, softcap=2.0),
    Case(2, 2, 1, 31, 40, 24, masked=True, softcap=1.0),
    Case(1, 2, 2, 129, 129, 16, causal=True, window=20, softcap=0.1),
    Case(2, 4, 2, 300, 300, 72, causal=True),
    Case(1, 6, 2, 90, 1100, 96, causal=True, window=600),
    Case(1, 3, 1, 1, 1100, 72, causal=True),
    Case(2, 4, 2, 1, 1, 64, sunk=True),
    Case(1, 4, 2, 1, 1100, 80, causal=True, window=700, sunk=True),
    Case(2, 4, 2, 150, 150, 20, causal=True, softcap=2.0, sunk=True),
    Case(2, 2, 1, 31, 40, 24, masked=True, sunk=True),
    Case(1, 2, 1, 9, 5, 16, causal=True, sunk=True),
    Case(1, 2, 1, 129, 129, 16, window=20),
    Case(2, 4, 2, 33, 300, 24, window=70, softcap=2.0),
    Case(1, 2, 1, 1, 50, 16, window=9),
    Case(1, 2, 2, 150, 150, 16, causal=True, chunk=64),
    Case(2, 4, 2, 90, 1100, 24, causal=True, chunk=300, begin=-77, window=200),
    Case(1, 2, 1, 65, 65, 8, chunk=30, begin=-7, sunk=True),
    Case(1, 2, 1, 3, 41, 8, causal=True, chunk=16),
]


def draw(case: Case) -> tuple[Array, Array, Array, Array, Array | None]:
    random = np.random.default_rng(int(sum(case)))
    q, g = (random.standard_normal((case.B, case.H, case.T, case.D)).astype(np.float32) for _ in range(2))
    k, v = (random.standard_normal((case.B, case.K, case.S, case.D)).astype(np.float32) for _ in range(2))
    mask = random.random((case.B, 1, case.T, case.S)) < 0.6 if case.masked else None
    if mask is not None and not case.causal:
        mask[0, 0, 0] = False
    return q, k, v, g, mask


def sinks_of(case: Case) -> Array:
    return np.random.default_rng(5).standard_normal(case.H).astype(np.float32) * 3


def expected(case: Case, scale: float) -> list[Array]:
    q, k, v, g, mask = (None if a is None else a.astype(np.float64) for a in draw(case))
    group = case.H // case.K
    wide_k, wide_v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    at, j = np.arange(case.S - case.T, case.S)[:, None], np.arange(case.S)
    seen = np.ones((case.T, case.S), bool)
    if case.causal:
        seen &= j <= at
    if case.window:
        seen &= np.abs(j - at) < case.window
    if case.chunk:
        seen &= (j - case.begin) // case.chunk == (at - case.begin) // case.chunk
    seen = seen[None, None] if mask is None else seen & (mask > 0)
    scores = scale * q @ wide_k.swapaxes(-1, -2)
    slope = np.ones_like(scores)
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
        slope = 1 - (scores / case.softcap) ** 2
    scores = np.where(seen, scores, -np.inf)
    sinks = (sinks_of(case) if case.sunk else np.full(case.H, -np.inf))[None, :, None, None]
    top = np.maximum(scores.max(-1, keepdims=True), sinks)
    top = np.where(np.isfinite(top), top, 0)
    p, sunk = np.exp(scores - top), np.exp(sinks - top)
    total = np.maximum(p.sum(-1, keepdims=True) + sunk, 1e-300)
    p, sunk = p / total, sunk / total
    out = p @ wide_v
    gp = g @ wide_v.swapaxes(-1, -2)
    gs = p * (gp - (g * out).sum(-1, keepdims=True)) * slope * scale

    def folded(x: Array) -> Array:
        return x.reshape(case.B, case.K, group, case.S, case.D).sum(2)

    slopes = [gs @ wide_k, folded(gs.swapaxes(-1, -2) @ q), folded(p.swapaxes(-1, -2) @ g)]
    return [out, *slopes, *([-(sunk * g * out).sum((0, 2, 3))] if case.sunk else [])]


@pytest.mark.parametrize("positions_first", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_attention_and_gradients_equal_the_definition(kernels: ModuleType, case: Case, positions_first: bool) -> None:
    scale = case.D**-0.5
    q, k, v, g, mask = draw(case)

    def laid_out(x: Array) -> mx.array:
        return mx.array(x.swapaxes(1, 2).copy()).swapaxes(1, 2) if positions_first else mx.array(x)

    def ours(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array | None = None) -> list[mx.array]:
        m = None if mask is None else mx.array(mask)
        told = {"causal": case.causal, "window": case.window, "chunk": case.chunk, "begin": case.begin}
        return [kernels.attention(q, k, v, scale, **told, mask=m, softcap=case.softcap, sinks=sinks)]

    inputs = [laid_out(x) for x in (q, k, v)] + ([mx.array(sinks_of(case))] if case.sunk else [])
    outs, grads = mx.vjp(ours, inputs, [laid_out(g)])
    for got, want in zip([*outs, *grads], expected(case, scale), strict=True):
        np.testing.assert_allclose(np.array(got), want, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(want).max()))


LAYOUTS = [
    pytest.param(PROJECTED, CACHED, TURNED, id="values turned"),
    pytest.param(WIDENED, TURNED, CACHED, id="keys turned"),
    pytest.param(TURNED, WIDENED, PROJECTED, id="values out of a projection"),
]


@pytest.mark.parametrize(("q_layout", "k_layout", "v_layout"), LAYOUTS)
@pytest.mark.parametrize("queries", [1, 5, 90])
def test_queries_keys_and_values_are_read_through_their_strides(
    kernels: ModuleType, queries: int, q_layout: Layout, k_layout: Layout, v_layout: Layout
) -> None:
    case = Case(2, 4, 2, queries, 90, 16, causal=True)
    q, k, v, g, _ = (None if x is None else mx.array(x) for x in draw(case))
    given = [laid(x, layout) for x, layout in zip((q, k, v), (q_layout, k_layout, v_layout), strict=True)]
    assert apart(*given[1:])

    def ours(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        return [kernels.attention(q, k, v, 0.25, True)]

    outs, grads = mx.vjp(ours, given, [laid(g, v_layout)])
    for got, want in zip([*outs, *grads], expected(case, 0.25), strict=True):
        np.testing.assert_allclose(np.array(got), want, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(want).max()))


def edges() -> list[Case]:
    """Windows and chunks that just cover, or just miss, the first or last key for some queries."""
    cases = []
    for T, S in ((1, 20), (3, 20), (70, 100), (3, 600)):
        first = S - T  # the position of the first query
        windows = {first, first + 1, first + 2, S - 1, S} - {0}
        cases += [Case(2, 4, 2, T, S, 16, causal=True, window=window) for window in windows]
        cases += [Case(1, 2, 1, T, S, 16, window=window) for window in (1, 2, T, T + 1)]
        cases += [Case(1, 2, 1, T, S, 16, causal=True, chunk=chunk) for chunk in (first, first + 1, S - 1)]
        cases += [Case(1, 2, 1, T, S, 16, causal=True, chunk=first, begin=begin) for begin in (1, -1)]
    return cases


@pytest.mark.parametrize("case", edges(), ids=lambda c: "-".join(map(str, c)))
def test_windows_and_chunks_end_at_the_right_key(kernels: ModuleType, case: Case) -> None:
    test_attention_and_gradients_equal_the_definition(kernels, case, positions_first=False)


@pytest.mark.parity
@pytest.mark.parametrize("heads", [(4, 2), (3, 1)])
def test_sink_gradients_equal_torchs(kernels: ModuleType, heads: tuple[int, int]) -> None:
    import torch

    case = Case(2, *heads, 13, 21, 40, causal=True, sunk=True)
    q, k, v, g, _ = draw(case)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v, sinks_of(case))]
    wide = [x.repeat_interleave(case.H // case.K, 1) for x in leaves[1:3]]
    hidden = torch.ones(case.T, case.S).tril(case.S - case.T) == 0
    scores = (0.3 * leaves[0] @ wide[0].transpose(-1, -2)).masked_fill(hidden, -torch.inf)
    scores = torch.cat([scores, leaves[3].view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    out = scores.softmax(-1)[..., :-1] @ wide[1]
    (out * torch.tensor(g)).sum().backward()

    def ours(*x: mx.array) -> list[mx.array]:
        return [kernels.attention(*x[:3], 0.3, True, sinks=x[3])]

    outs, grads = mx.vjp(ours, [mx.array(x) for x in (q, k, v, sinks_of(case))], [mx.array(g)])
    wants = [out.detach(), *(leaf.grad for leaf in leaves)]
    for got, want in zip([*outs, *grads], wants, strict=True):
        np.testing.assert_allclose(np.array(got), want, rtol=1e-4, atol=2e-5)


def test_a_slice_of_a_longer_cache_is_read_in_place(kernels: ModuleType) -> None:
    buffer, q = mx.random.normal((2, 2, 64, 32)), mx.random.normal((2, 4, 1, 32))
    part = buffer[:, :, 5:42]
    want = kernels.attention(q, mx.array(np.array(part)), mx.array(np.array(part)), 0.3)
    np.testing.assert_array_equal(np.array(kernels.attention(q, part, part, 0.3)), np.array(want))


def test_a_query_without_visible_keys_gives_zero(kernels: ModuleType) -> None:
    q, mask = mx.ones((1, 1, 2, 4)), mx.array([[False, False], [True, False]])
    assert kernels.attention(q, q, q, 1.0, mask=mask).tolist() == [[[[0] * 4, [1] * 4]]]
