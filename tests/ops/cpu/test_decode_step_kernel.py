"""Decode-step branches against float64 numpy, for all norms, biases, rotations and layouts."""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.decode_step import ACTIVATIONS, AttentionParams, Branches, MLPParams, Slots, plan, run, supports
from macllm.ops.head_params import Packing
from macllm.ops.kv import quantize
from macllm.ops.quantized import using_activations
from macllm.ops.weights import DenseWeight, LayerNormWeight, NormWeight, PackedWeight, RMSNormWeight, Weight

Array = np.ndarray
ONE = mx.ones(1)  # a placeholder for weights: plans need only the kind
NO, RMS, OFFSET = None, RMSNormWeight(ONE, 1e-5), RMSNormWeight(ONE, 1e-6, 1.0)
LAYER = LayerNormWeight(ONE, ONE, 1e-5)


class Case(NamedTuple):
    B: int
    D: int
    H: int
    K: int
    Dh: int
    at: int  # slots before the new one
    room: int = 3
    norms: tuple[NormWeight, NormWeight, NormWeight] = (RMS, NO, NO)
    qk: tuple[NormWeight, NormWeight] = (NO, NO)  # over projections, over heads
    pairs: int = 0
    interleaved: bool = False
    magnitude: float = 1.0
    softcap: float = 0.0
    heat: tuple[float, float] = (0.0, 0.0)
    bias: bool = False
    padding: bool = False
    packing: Packing | None = None
    kv_bits: int = 0


CASES = [
    Case(1, 1, 1, 1, 1, 0),
    Case(1, 16, 2, 1, 16, 5, pairs=8),
    Case(2, 33, 6, 2, 20, 17, pairs=7, interleaved=True, bias=True),
    Case(3, 40, 4, 4, 24, 70, norms=(LAYER, NO, NO), bias=True, padding=True),
    Case(1, 64, 9, 3, 64, 1300, pairs=32),
    Case(8, 70, 2, 2, 33, 40, norms=(OFFSET, OFFSET, NO), qk=(NO, OFFSET), softcap=3.0, pairs=16, padding=True),
    Case(2, 48, 4, 2, 16, 600, norms=(NO, RMS, NO), qk=(RMS, NO), pairs=8, magnitude=1.3),
    Case(5, 48, 4, 1, 16, 9, norms=(NO, NO, LAYER), heat=(4.0, 0.3), padding=True),
    Case(1, 512, 8, 8, 64, 2000, pairs=32),
    Case(1, 96, 3, 1, 64, 7, pairs=32, bias=True, packing=Packing(4, 32)),
    Case(3, 128, 4, 2, 32, 90, norms=(LAYER, RMS, NO), padding=True, packing=Packing(8, 64)),
    Case(2, 160, 6, 3, 32, 20, pairs=16, packing=Packing(3, 32)),
    Case(1, 48, 9, 3, 64, 700, pairs=32, kv_bits=8),
    Case(2, 33, 4, 2, 80, 150, pairs=40, softcap=2.0, padding=True, kv_bits=4),
    Case(3, 40, 2, 2, 20, 3, kv_bits=8, padding=True),
]


def draw(seed: int, *shape: int) -> Array:
    scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def normed(norm: NormWeight, x: Array, weight: Array | None, bias: Array | None) -> Array:
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdims=True) if isinstance(norm, LayerNormWeight) else x
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    y = y if weight is None else y * (weight + (norm.shift if isinstance(norm, RMSNormWeight) else 0))
    return y if bias is None else y + bias


class Drawn:
    """The present weights in the order of a step, in float32 for the op and float64 for numpy."""

    def __init__(self, packing: Packing | None = None) -> None:
        self.packing = packing
        self.linears: list[Weight] = []
        self.present: list[bool] = []
        self.arrays: list[mx.array] = []

    def add(self, array: Array | None) -> Array | None:
        self.present.append(array is not None)
        if array is None:
            return None
        self.arrays.append(mx.array(array))
        return array.astype(np.float64)

    def norm(self, norm: NormWeight, n: int) -> tuple[Array | None, Array | None]:
        seed = len(self.present)
        weight = self.add(1 + draw(seed, n) / 4 if norm else None)
        return weight, self.add(draw(seed + 1, n) if isinstance(norm, LayerNormWeight) else None)

    def linear(self, outputs: int, inputs: int, bias: bool) -> tuple[Array, Array]:
        seed, packed = len(self.present), self.packing is not None
        weight, layout = draw(seed, outputs, inputs), self.packing._asdict() if self.packing else {}
        parts = mx.quantize(mx.array(weight), **layout) if packed else [mx.array(weight)]
        self.linears.append(PackedWeight(*parts, **layout) if packed else DenseWeight(*parts))
        self.present += [True, packed, packed]
        self.arrays += parts
        wide = np.array(mx.dequantize(*parts, **layout) if packed else parts[0]).astype(np.float64)
        shift = self.add(draw(seed + 1, outputs) if bias else None)
        return wide, np.zeros(outputs) if shift is None else shift


def turned(case: Case, x: Array, position: int, waves: Array) -> Array:
    n = case.pairs
    angle = (np.float32(position) / waves).astype(np.float64)  # in float32, as in the kernels
    cos, sin, y = np.cos(angle) * case.magnitude, np.sin(angle) * case.magnitude, x.copy()
    first, second = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if case.interleaved else (slice(0, n), slice(n, 2 * n))
    a, b = x[..., first], x[..., second]
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return y


def attended(case: Case, q: Array, keys: Array, values: Array, scale: float) -> Array:
    group, out = case.H // case.K, np.zeros((case.H, case.Dh))
    for h in range(case.H):
        scores = keys[h // group] @ q[h] * scale
        if case.softcap:
            scores = case.softcap * np.tanh(scores / case.softcap)
        p = np.exp(scores - scores.max())
        out[h] = p @ values[h // group] / p.sum()
    return out


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.B}x{case.D}-{case.H}-{case.K}-{case.Dh}-{case.at}-{case.kv_bits}"
)
def test_an_attention_branch_equals_numpys(kernels: ModuleType, case: Case) -> None:
    c, drawn, scale = case, Drawn(case.packing), case.Dh**-0.6
    norms = [drawn.norm(norm, c.D) for norm in c.norms]
    maps = [drawn.linear(n * c.Dh, c.D, c.bias) for n in (c.H, c.K, c.K)]
    o, o_bias = drawn.linear(c.D, c.H * c.Dh, c.bias)
    whole, head = c.qk
    qk = [drawn.norm(*each) for each in ((whole, c.H * c.Dh), (whole, c.K * c.Dh), (head, c.Dh), (head, c.Dh))]
    x, waves = draw(90, c.B, 1, c.D), (3.0 ** np.arange(c.pairs)).astype(np.float32)
    old = [draw(91 + i, c.B, c.K, c.at + c.room, c.Dh) for i in range(2)]
    first = [min(c.at, 3 * b) for b in range(c.B)] if c.padding else [0] * c.B
    position = [c.at - n for n in first]
    params = AttentionParams(c.H, scale, c.softcap, *c.heat, c.interleaved, whole, whole, head, head)
    group = 64 if c.Dh % 64 == 0 else 32
    layout = Packing(c.kv_bits, group) if c.kv_bits else None
    buffers = [mx.array(array) for array in old]
    if layout:
        buffers = [part for array in buffers for part in quantize(array, *layout)]
    before, count = [np.array(part, copy=True) for part in buffers], len(buffers) // 2
    turns = mx.array(waves) if c.pairs else None
    slots = Slots(buffers, c.at, first, position, None, turns, c.magnitude, layout)
    planned = plan(c.norms, params, drawn.linears, drawn.present)
    with using_activations("float"):
        done = run(mx.array(x), Branches([planned], drawn.arrays, [slots]))
    mx.eval(done)
    kept = [rows_of(c, buffers[:count], group), rows_of(c, buffers[count:], group)]
    step_of_codes = [largest_step(c, buffers[:count]), largest_step(c, buffers[count:])]
    others = np.arange(c.at + c.room) != c.at
    for part, was in zip(buffers, before, strict=True):
        np.testing.assert_array_equal(np.array(part)[:, :, others], was[:, :, others])

    for b in range(c.B):
        stream = x[b, 0].astype(np.float64)
        read = normed(c.norms[0], stream, *norms[0])
        q, k, v = (weight @ read + bias for weight, bias in maps)
        q, k = normed(whole, q, *qk[0]).reshape(c.H, c.Dh), normed(whole, k, *qk[1]).reshape(c.K, c.Dh)
        q, k = (turned(c, normed(head, y, *w), position[b], waves) for y, w in ((q, qk[2]), (k, qk[3])))
        if c.heat[0]:
            q = q * (1 + c.heat[1] * math.log1p(math.floor((position[b] + 1) / c.heat[0])))
        rows = [array[b] for array in kept]
        for row, new, apart in zip(rows, (k, v.reshape(c.K, c.Dh)), step_of_codes, strict=True):
            np.testing.assert_allclose(
                row[:, c.at], new, rtol=1e-5, atol=1e-5 + 1.01 * apart
            )  # the end nearer to 0 may be cut off
        y = attended(c, q, *(row[:, first[b] : c.at + 1] for row in rows), scale)
        want = stream + normed(c.norms[1], o @ y.reshape(-1) + o_bias, *norms[1])
        want = normed(c.norms[2], want, *norms[2])
        np.testing.assert_allclose(np.array(done)[b, 0], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def rows_of(case: Case, parts: list[mx.array], group: int) -> Array:
    """The stored keys or values: (B, K, S, Dh), float64."""
    if not case.kv_bits:
        return np.array(parts[0]).astype(np.float64)
    codes = np.array(parts[0]).view(np.uint8)
    codes = codes if case.kv_bits == 8 else np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    scales, biases = (np.repeat(np.array(part).astype(np.float64), group, -1) for part in parts[1:])
    return (codes * scales + biases)[..., : case.Dh]


def largest_step(case: Case, parts: list[mx.array]) -> float:
    """The largest distance between codes; 0 without codes."""
    return float(mx.abs(parts[1]).max()) if case.kv_bits else 0.0


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("shape", "norms", "packing"),
    [
        ((1, 1, 1), (RMS, NO, NO), None),
        ((3, 33, 70), (OFFSET, OFFSET, NO), None),
        ((1, 256, 5000), (LAYER, NO, NO), None),
        ((8, 17, 9), (NO, NO, LAYER), None),
        ((1, 576, 1536), (RMS, NO, NO), Packing(4, 64)),
        ((3, 256, 1024), (RMS, NO, NO), Packing(2, 128)),
        ((8, 64, 160), (LAYER, NO, NO), Packing(8, 32)),
    ],
)
def test_a_feed_forward_branch_equals_numpys(
    kernels: ModuleType,
    activation: str,
    gated: bool,
    shape: tuple[int, int, int],
    norms: tuple[NormWeight, NormWeight, NormWeight],
    packing: Packing | None,
) -> None:
    (B, D, F), drawn = shape, Drawn(packing)
    residual = [drawn.norm(norm, D) for norm in norms]
    up, down = drawn.linear(F, D, True), drawn.linear(D, F, True)
    gate = drawn.linear(F, D, False) if gated else None
    x = draw(7, B, 1, D)
    planned = plan(norms, MLPParams(activation, gated), drawn.linears, drawn.present)
    with using_activations("float"):
        got = run(mx.array(x), Branches([planned], drawn.arrays, []))
    wide = x[:, 0].astype(np.float64)
    read = normed(norms[0], wide, *residual[0])
    acting, hidden = (read @ gate[0].T, read @ up[0].T + up[1]) if gate else (read @ up[0].T + up[1], 1.0)
    hidden = ACTING[activation](acting) * hidden
    want = wide + normed(norms[1], hidden @ down[0].T + down[1], *residual[1])
    want = normed(norms[2], want, *residual[2])
    np.testing.assert_allclose(np.array(got)[:, 0], want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))


ACTING = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def test_branches_run_in_order_on_each_others_results(kernels: ModuleType) -> None:
    x, branches = draw(1, 2, 1, 12), []
    for n in range(5):
        drawn = Drawn()
        for norm in (RMS, NO, NO):
            drawn.norm(norm, 12)
        for outputs, inputs in ((20 + n, 12), (12, 20 + n)):
            drawn.linear(outputs, inputs, True)
        planned = plan((RMS, NO, NO), MLPParams("silu", False), drawn.linears, drawn.present)
        branches.append(Branches([planned], drawn.arrays, []))
    want = mx.array(x)
    for branch in branches:
        want = run(want, branch)
    plans, weights = [b.plans[0] for b in branches], [weight for b in branches for weight in b.weights]
    together = run(mx.array(x), Branches(plans, weights, []))
    np.testing.assert_array_equal(np.array(together), np.array(want))


def test_traced_and_half_precision_hidden_states_are_not_supported(kernels: ModuleType) -> None:
    x, seen = mx.ones((1, 1, 4)), []
    assert supports(x, [mx.ones(4), mx.ones((4, 4), mx.bfloat16), mx.ones((4, 4), mx.uint32)])
    assert not supports(x.astype(mx.bfloat16))
    assert not supports(x, [mx.ones(4, mx.bfloat16)])
    assert not supports(mx.ones((9, 1, 4)))
    assert not supports(mx.ones((1, 2, 4)))

    def loss(x: mx.array) -> mx.array:
        seen.append(supports(x))
        seen.append(supports(mx.ones((1, 1, 4)), [x]))
        return x.sum()

    mx.grad(loss)(x)
    mx.compile(loss)(x)
    assert seen == [False] * 4


@pytest.mark.parametrize("arrays", [[], [mx.ones((4, 4))], [mx.ones((4, 4))] * 3])
def test_weights_that_do_not_match_the_plan_are_refused(kernels: ModuleType, arrays: list[mx.array]) -> None:
    present = [False] * 6 + [True, False, False, False] * 2
    linears = [DenseWeight(mx.ones((4, 4)))] * 2
    planned = plan((NO, NO, NO), MLPParams("silu", False), linears, present)
    with pytest.raises(ValueError, match="planned"):
        run(mx.ones((1, 1, 4)), Branches([planned], arrays, []))
