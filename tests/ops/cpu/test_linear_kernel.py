"""Linear layers with weights of 16 and 32 bits against float64 numpy, forward and every gradient."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.nn.linear import Embedding, Linear
from macllm.ops import cpu, dispatch
from macllm.ops.linear import dense_linear, rows

TYPES = [mx.float32, mx.bfloat16, mx.float16]
# (outputs, inputs): one, unaligned, wider than a vector, several blocks deep and wide.
SIZES = [(1, 1), (3, 5), (17, 33), (64, 96), (130, 1), (5, 1030), (700, 530)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 24, 25, 70, 200]

Array = np.ndarray


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def wide(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, want: Array, depth: int) -> None:
    np.testing.assert_allclose(np.array(got), want, rtol=1e-5, atol=2e-6 * depth**0.5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_linear_equals_numpys(kernels: ModuleType, size: tuple[int, int], dtype: mx.Dtype) -> None:
    outputs, inputs = size
    w, b = mx.array(draw(outputs, inputs)).astype(dtype), mx.array(draw(outputs, seed=1))
    for count in ROWS:
        x, g = draw(count, inputs, seed=2), draw(count, outputs, seed=3)
        (y,), (gx,) = mx.vjp(lambda a, w=w: [kernels.linear(a, w)], [mx.array(x)], [mx.array(g)])
        close(y, x.astype(np.float64) @ wide(w).T, inputs)
        close(gx, g.astype(np.float64) @ wide(w), outputs)
        close(kernels.linear(mx.array(x), w, b), x.astype(np.float64) @ wide(w).T + wide(b), inputs)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_gradients_of_weight_and_bias_equal_numpys(kernels: ModuleType, dtype: mx.Dtype) -> None:
    x, g = draw(2, 9, 33), draw(2, 9, 17, seed=1)
    w, b = mx.array(draw(17, 33)).astype(dtype), mx.array(draw(17, seed=3))
    _, grads = mx.vjp(lambda *a: [kernels.linear(*a)], [mx.array(x), w, b], [mx.array(g)])
    assert [grad.dtype for grad in grads] == [mx.float32, dtype, mx.float32]
    close(grads[0], g.astype(np.float64) @ wide(w), 17)
    exact = np.einsum("blf,bld->fd", g.astype(np.float64), x)
    spacing = {mx.float32: 1e-6, mx.bfloat16: 2**-8, mx.float16: 2**-11}[dtype]
    np.testing.assert_allclose(wide(grads[1]), exact, rtol=spacing, atol=1e-5)
    close(grads[2], g.astype(np.float64).sum((0, 1)), 18)


def test_the_gradient_of_a_weight_has_its_layout(kernels: ModuleType) -> None:
    gradient = mx.grad(lambda w: mx.square(dense_linear(mx.ones((5, 3)), w)).sum())(mx.ones((4, 3)))
    mx.eval(gradient)
    assert memoryview(gradient).strides == (12, 4)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_every_number_of_16_bits_is_read_exactly(kernels: ModuleType, dtype: mx.Dtype) -> None:
    numbers = mx.arange(65536).astype(mx.uint16).view(dtype)
    want = np.array(numbers.astype(mx.float32))
    for count in (1, 30):
        with np.errstate(invalid="ignore"):
            got = np.array(kernels.linear(mx.ones((count, 1)), numbers[:, None]))
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[0, finite], want[finite])
        np.testing.assert_array_equal(np.isnan(got[0]), np.isnan(want))
        np.testing.assert_array_equal(got[0, np.isinf(want)], want[np.isinf(want)])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("count", [1, 40])
def test_inputs_in_any_layout_are_read_correctly(kernels: ModuleType, dtype: mx.Dtype, count: int) -> None:
    x, w = mx.random.normal((33, count)).T, mx.random.normal((33, 20)).astype(dtype).T
    part = mx.random.normal((40, 66)).astype(dtype)[::2, ::2]
    for weight in (w, part, part[::-1]):
        close(kernels.linear(x, weight), wide(x) @ wide(weight).T, 33)


def test_empty_inputs_give_empty_outputs(kernels: ModuleType) -> None:
    w = mx.zeros((3, 4), mx.bfloat16)
    assert kernels.linear(mx.zeros((0, 4)), w).shape == (0, 3)
    assert kernels.linear(mx.zeros((2, 0)), mx.zeros((3, 0), mx.float16)).tolist() == [[0, 0, 0]] * 2
    assert mx.grad(lambda x: kernels.linear(x, w).sum())(mx.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("count", [2, 300])
def test_a_sum_over_no_inputs_is_zero(kernels: ModuleType, count: int, dtype: mx.Dtype) -> None:
    def used(*shape: int) -> None:
        mx.eval([mx.full(shape, 7.0) for _ in range(4)])

    used(count, 50)
    no_inputs = kernels.linear(mx.zeros((count, 0)), mx.zeros((50, 0), dtype))
    np.testing.assert_array_equal(np.array(no_inputs), np.zeros((count, 50)))
    used(count, 50)
    no_outputs = mx.grad(lambda x: kernels.linear(x, mx.zeros((0, 50), dtype)).sum())(mx.ones((count, 50)))
    np.testing.assert_array_equal(np.array(no_outputs), np.zeros((count, 50)))


def test_mismatched_shapes_and_types_are_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="takes x of float32"):
        kernels.linear(mx.zeros((2, 4), mx.bfloat16), mx.zeros((3, 4), mx.bfloat16))
    with pytest.raises(ValueError, match=r"\(F, D\)"):
        kernels.linear(mx.zeros((2, 4)), mx.zeros((3, 5), mx.bfloat16))
    with pytest.raises(ValueError, match="bias"):
        kernels.linear(mx.zeros((2, 4)), mx.zeros((3, 4)), mx.zeros(4))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_stock_and_native_agree(dtype: mx.Dtype) -> None:
    layer = Linear(40, 24)
    layer.weight = layer.weight.astype(dtype)
    x = mx.random.normal((2, 3, 40))
    with dispatch.using("stock"):
        stock, slope = layer(x), mx.grad(lambda x: mx.square(layer(x)).sum())(x)
    native = layer(x)
    assert stock.dtype == native.dtype == mx.float32
    np.testing.assert_allclose(np.array(native), np.array(stock), rtol=1e-5, atol=1e-6)
    got = mx.grad(lambda x: mx.square(layer(x)).sum())(x)
    np.testing.assert_allclose(np.array(got), np.array(slope), rtol=1e-5, atol=1e-5)


def test_without_openblas_mlx_computes_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = mx.random.normal((3, 8)), mx.random.normal((5, 8)).astype(mx.bfloat16)
    want = np.array(dense_linear(x, w))
    monkeypatch.setattr(cpu.blas, "_divided", False)
    np.testing.assert_allclose(np.array(dense_linear(x, w)), want, rtol=1e-5, atol=1e-6)


def test_embedding_rows_are_float32() -> None:
    table = Embedding(9, 4)
    table.weight = table.weight.astype(mx.float16)
    found = rows(table.weight, mx.array([[2, 8]]))
    assert (found.shape, found.dtype) == ((1, 2, 4), mx.float32)
    np.testing.assert_array_equal(np.array(found[0]), np.array(table.weight.astype(mx.float32))[[2, 8]])
    assert table.as_linear(found).shape == (1, 2, 9)


# Sides about the tile's and the vectors' sizes, more rows and depth than are packed together, and every layout.
@pytest.mark.parametrize(
    "sizes", [(32, 32, 32), (33, 47, 1025), (1100, 65, 33), (14 * 5 + 13, 129, 64), (200, 300, 2100)]
)
@pytest.mark.parametrize("layout", ["NN", "NT", "TN", "TT"])
def test_large_products_are_correct_in_every_layout(
    kernels: ModuleType, sizes: tuple[int, int, int], layout: str
) -> None:
    M, N, K = sizes
    a, b = draw(M, K), draw(K, N, seed=1)
    left = mx.array(a) if layout[0] == "N" else mx.array(np.ascontiguousarray(a.T)).T
    right = mx.array(b) if layout[1] == "N" else mx.array(np.ascontiguousarray(b.T)).T
    want = a.astype(np.float64) @ b
    close(left @ right, want, K)
    start = draw(M, N, seed=2)
    close(mx.addmm(mx.array(start), left, right), want + start, K)
