"""Each native kernel against float64 numpy, or central differences of it, forward and every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

Array = np.ndarray
SHAPES = [(1,), (1, 1), (3, 5), (2, 16), (5, 17), (4, 33), (2, 3, 1000), (7, 4097), (50, 700)]

erf = np.vectorize(math.erf)
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_quick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) * scale).astype(np.float32)


def close(got: mx.array, want: Array, tolerance: float = 2e-6) -> None:
    np.testing.assert_allclose(np.array(got), want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max()))


def derivative(f: Callable[[Array], Array], x: Array) -> Array:
    wide, h = x.astype(np.float64), 1e-6
    return (f(wide + h) - f(wide - h)) / (2 * h)


def gradients(f: Callable[..., mx.array], cotangent: Array, *inputs: Array) -> list[mx.array]:
    _, grads = mx.vjp(lambda *arrays: [f(*arrays)], [mx.array(i) for i in inputs], [mx.array(cotangent)])
    return grads


def softmax64(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def lse64(x: Array) -> Array:
    top = x.max(-1, keepdims=True).astype(np.float64)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def test_exp_is_within_two_ulp_everywhere(kernels: ModuleType) -> None:
    x = np.concatenate([np.linspace(-103, 88.72, 400_001), np.linspace(-1, 1, 100_001)]).astype(np.float32)
    want = np.exp(x.astype(np.float64))
    ulp = np.spacing(want.astype(np.float32)).astype(np.float64)
    assert (np.abs(np.array(kernels.unary(mx.array(x), "exp")) - want) / ulp).max() <= 2


def test_exp_is_correct_at_the_ends_of_its_range(kernels: ModuleType) -> None:
    x = mx.array([-math.inf, -200.0, 0.0, 89.0, math.inf, math.nan])
    np.testing.assert_array_equal(np.array(kernels.unary(x, "exp")), [0, 0, 1, math.inf, math.inf, math.nan])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_gates_and_gradients_equal_numpys(kernels: ModuleType, kind: str, shape: tuple[int, ...]) -> None:
    f, x, up, g = FUNCTIONS[kind], draw(*shape, scale=3), draw(*shape, seed=1), draw(*shape, seed=2)
    wide = x.astype(np.float64)
    close(kernels.unary(mx.array(x), kind), f(wide))
    close(gradients(lambda a: kernels.unary(a, kind), g, x)[0], g * derivative(f, x), 1e-5)
    close(kernels.gate(mx.array(x), mx.array(up), kind), f(wide) * up)
    got = gradients(lambda a, b: kernels.gate(a, b, kind), g, x, up)
    close(got[0], g * up * derivative(f, x), 1e-5)
    close(got[1], g * f(wide))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_activations_of_large_numbers_are_finite(kernels: ModuleType, kind: str) -> None:
    x = mx.array([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
    np.testing.assert_allclose(np.array(kernels.unary(x, kind)), np.maximum(np.array(x), 0), atol=1e-6)
    slope = mx.grad(lambda a: kernels.unary(a, kind).sum())(x)
    np.testing.assert_allclose(np.array(slope), np.array(x) > 0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_logsumexp_and_gradients_equal_numpys(kernels: ModuleType, shape: tuple[int, ...]) -> None:
    x, g = draw(*shape, scale=5), draw(*shape, seed=1)
    p, gl = softmax64(x), draw(*shape[:-1], seed=2) if len(shape) > 1 else np.float32(0.7)
    close(kernels.softmax(mx.array(x)), p)
    close(gradients(kernels.softmax, g, x)[0], p * (g - (g * p).sum(-1, keepdims=True)), 1e-5)
    close(kernels.logsumexp(mx.array(x)), lse64(x))
    close(gradients(kernels.logsumexp, np.asarray(gl), x)[0], p * np.asarray(gl)[..., None], 1e-5)


def test_logsumexp_handles_infinities(kernels: ModuleType) -> None:
    x = mx.array([[-math.inf, -math.inf], [-math.inf, 1.0], [math.inf, 1.0], [math.nan, 1.0]])
    np.testing.assert_array_equal(np.array(kernels.logsumexp(x)), [-math.inf, 1.0, math.inf, math.nan])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 16), (2, 5, 33), (4, 4097)])
def test_cross_entropy_and_gradients_equal_numpys(kernels: ModuleType, shape: tuple[int, ...]) -> None:
    x, g, gl = draw(*shape, scale=4), draw(*shape[:-1], seed=1), draw(*shape[:-1], seed=2)
    targets = np.random.default_rng(3).integers(0, shape[-1], shape[:-1])
    targets.flat[0] = -100
    counted = targets >= 0
    loss, lse = kernels.cross_entropy(mx.array(x), mx.array(targets))
    picked = np.take_along_axis(x, np.maximum(targets, 0)[..., None], -1)[..., 0]
    close(lse, lse64(x))
    close(loss, np.where(counted, lse64(x) - picked, 0))
    _, (got,) = mx.vjp(
        lambda a: list(kernels.cross_entropy(a, mx.array(targets))), [mx.array(x)], [mx.array(g), mx.array(gl)]
    )
    hot = (np.arange(shape[-1]) == targets[..., None]) * 1.0
    close(got, softmax64(x) * (g * counted + gl)[..., None] - hot * (g * counted)[..., None], 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_and_gradients_equal_numpys(kernels: ModuleType, shape: tuple[int, ...]) -> None:
    x, w, g, eps = draw(*shape, scale=3), draw(shape[-1], seed=1), draw(*shape, seed=2), 1e-5
    wide, n = x.astype(np.float64), shape[-1]
    r = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + eps)
    close(kernels.rms_norm(mx.array(x), mx.array(w), eps), wide * r * w)
    gx, gw = gradients(lambda a, b: kernels.rms_norm(a, b, eps), g, x, w)
    close(gx, r * (g * w - wide * r**2 * (g * w * wide).sum(-1, keepdims=True) / n), 1e-5)
    close(gw, (g * wide * r).reshape(-1, n).sum(0), 1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_and_gradients_equal_numpys(kernels: ModuleType, shape: tuple[int, ...], biased: bool) -> None:
    x, w, g, eps, n = draw(*shape, scale=3) + 2, draw(shape[-1], seed=1), draw(*shape, seed=2), 1e-5, shape[-1]
    b = draw(n, seed=3)
    centred = x - x.astype(np.float64).mean(-1, keepdims=True)
    r = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    unit, gw = centred * r, g * w.astype(np.float64)
    bias = mx.array(b) if biased else None
    close(kernels.layer_norm(mx.array(x), mx.array(w), bias, eps), unit * w + b * biased, 5e-6)
    inner = (gw * unit).mean(-1, keepdims=True)
    want = [r * (gw - gw.mean(-1, keepdims=True) - unit * inner), g * unit, g.astype(np.float64)]
    got = gradients(lambda *a: kernels.layer_norm(*a[:2], *(a[2:] or [None]), eps), g, x, w, *[b] * biased)
    for a, exact, whole in zip(got, want, (True, False, False), strict=False):
        close(a, exact if whole else exact.reshape(-1, n).sum(0), 2e-5)


def test_layer_norm_of_large_means_keeps_its_digits(kernels: ModuleType) -> None:
    x = mx.array(draw(3, 700) + 1000)
    wide = np.array(x).astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    close(kernels.layer_norm(x, mx.ones(700), None, 1e-5), want, 1e-4)


def test_the_norm_of_many_arrays_is_that_of_one_vector(kernels: ModuleType) -> None:
    parts = [draw(1), draw(7, 33), draw(40_001, seed=4), draw(3, 5, 20, seed=5)]
    odd = [mx.array(parts[0]), mx.array(parts[1].T.copy()).T, mx.array(parts[2])[::-1], mx.array(parts[3])[:, ::2]]
    exact = np.linalg.norm(np.concatenate([np.array(a).ravel() for a in odd]).astype(np.float64))
    assert abs(kernels.norm(odd).item() - exact) < 1e-5 * exact
    assert np.isnan(kernels.norm([mx.ones(3), mx.array([np.nan])]).item())
    assert np.isinf(kernels.norm([mx.ones(3), mx.array([np.inf])]).item())


@pytest.mark.parametrize("n", [1, 15, 1000, 20_001])
def test_adamw_equals_numpys(kernels: ModuleType, n: int) -> None:
    p, g, m, v = draw(n), draw(n, seed=1), draw(n, seed=2), draw(n, seed=3) ** 2
    scalars = [np.float32(x) for x in (0.5, 0.01, 1.2, 0.99)]
    scale, step, root, kept = (float(s) for s in scalars)
    m64 = 0.9 * m + 0.1 * scale * g.astype(np.float64)
    v64 = 0.95 * v + 0.05 * (scale * g.astype(np.float64)) ** 2
    want = p * kept - step * m64 / (np.sqrt(v64) * root + 1e-8)
    got = kernels.adamw(*map(mx.array, (p, g, m, v)), [mx.array(s) for s in scalars], 0.9, 0.95, 1e-8)
    for a, b in zip(got, (want, m64, v64), strict=True):
        close(a, b)


def test_the_first_moments_of_adamw_are_their_shares_of_the_gradient(kernels: ModuleType) -> None:
    """In float32, 1 - 0.999 is too small by 1e-5 of it, and every early step is too long."""
    g, zeros, one = draw(100), mx.zeros(100), mx.array(1.0)
    _, mean, square = kernels.adamw(zeros, mx.array(g), zeros, zeros, [one] * 4, 0.9, 0.999, 1e-8)
    np.testing.assert_allclose(np.array(mean), 0.1 * g.astype(np.float64), rtol=3e-7)
    np.testing.assert_allclose(np.array(square), 0.001 * g.astype(np.float64) ** 2, rtol=3e-7)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("shape", "turned"), [((1, 1, 1, 2), 2), ((2, 3, 5, 20), 12), ((3, 2, 33, 64), 64)])
@pytest.mark.parametrize("each", [False, True])
def test_rope_and_gradients_equal_numpys(
    kernels: ModuleType, shape: tuple[int, ...], turned: int, interleaved: bool, each: bool
) -> None:
    B, _, L, _ = shape
    x, g = draw(*shape), draw(*shape, seed=1)
    waves = (10_000 ** (np.arange(0, turned, 2) / turned)).astype(np.float32)
    offset = np.arange(B) * 3 - 1 if each else np.array(7)
    angle = (offset.reshape(-1, 1, 1, 1) + np.arange(L)[:, None]) / waves.astype(np.float64)

    def turn(x: Array, angle: Array) -> Array:
        first, second = (
            (slice(0, turned, 2), slice(1, turned, 2))
            if interleaved
            else (slice(0, turned // 2), slice(turned // 2, turned))
        )
        y = x.astype(np.float64)
        a, b = x[..., first], x[..., second]
        y[..., first] = a * np.cos(angle) - b * np.sin(angle)
        y[..., second] = a * np.sin(angle) + b * np.cos(angle)
        return y

    def ours(a: mx.array) -> mx.array:
        return kernels.rope(a, mx.array(waves), mx.array(offset), interleaved)

    close(ours(mx.array(x)), turn(x, angle), 5e-6)
    close(gradients(ours, g, x)[0], turn(g, -angle), 5e-6)


def test_rope_does_not_reuse_angles_of_other_positions(kernels: ModuleType) -> None:
    for length, offset, factor in [(3, 2, 1), (3, 4, 1), (4, 4, 1), (4, [4, 4], 1), (4, [4, 5], 1), (4, [4, 5], 2)]:
        x, waves = draw(2, 1, length, 4), np.array([1.0, 30.0], np.float32) * factor
        angle = (np.reshape(offset, (-1, 1, 1, 1)) + np.arange(length)[:, None]) / waves.astype(np.float64)
        a, b = x[..., :2].astype(np.float64), x[..., 2:]
        want = np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)
    close(kernels.rope(mx.array(x), mx.array(waves), mx.array(offset)), want, 5e-6)
