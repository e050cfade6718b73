"""Products with packed matrices against float64 numpy products with the dequantized matrices."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.ops.cpu import blas, build
from macllm.ops.quantized import quantized_gather_matmul, quantized_matmul, quantized_rows, using_activations
from macllm.ops.weights import PackedWeight

Array = np.ndarray
BITS, GROUPS, DTYPES = (2, 3, 4, 5, 6, 8), (32, 64, 128), (mx.float32, mx.float16, mx.bfloat16)
ROWS = (1, 2, 3, 7, 8, 9, 13, 33)
WIDTHS = {32: 5 * 32, 64: 7 * 64, 128: 3 * 128}  # not whole chunks of any kernel
ROUNDING = 16 * 2.0**-24  # of a sum in float32, relative to the sum of magnitudes
# Activations that share a scale when they are rounded: of few rows, and of many.
FEW_ROUNDED = 12
NEIGHBOURS, MANY_NEIGHBOURS = {2: 16, 4: 8, 8: 4, 3: 4, 5: 4, 6: 4}, 32


class Case(NamedTuple):
    bits: int
    group: int
    dtype: mx.Dtype = mx.float32
    N: int = 37
    K: int = 0
    stack: tuple[int, ...] = ()


class Matrix(NamedTuple):
    packed: tuple[mx.array, mx.array, mx.array]
    value: Array
    magnitude: Array  # of scale q and bias together, by which rounding is measured


def matrix(case: Case) -> Matrix:
    random = np.random.default_rng(case.bits * case.group + case.N)
    shape = (*case.stack, case.N, case.K or WIDTHS[case.group])
    dense = mx.array(random.standard_normal(shape), case.dtype)
    words, scales, biases = mx.quantize(dense, group_size=case.group, bits=case.bits)
    ones = mx.ones(scales.shape)
    q = mx.dequantize(words, ones, mx.zeros(scales.shape), group_size=case.group, bits=case.bits)
    wide = [np.repeat(np.array(a.astype(mx.float32)).astype(np.float64), case.group, -1) for a in (scales, biases)]
    times = np.array(q).astype(np.float64) * wide[0]
    return Matrix((words, scales, biases), times + wide[1], np.abs(times) + np.abs(wide[1]))


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def within(got: mx.array, want: Array, bound: Array) -> None:
    excess = np.abs(np.array(got).astype(np.float64) - want) / np.maximum(bound, 1e-30)
    assert excess.max(initial=0) <= 1, f"{excess.max():.2f} times the bound"


def rounding_of_activations(x: Array, bits: int) -> Array:
    """Largest rounding error of an int8 activation: half a step of its group's scale."""
    neighbours = NEIGHBOURS[bits] if x.size // x.shape[-1] <= FEW_ROUNDED else MANY_NEIGHBOURS
    shared = x.reshape(*x.shape[:-1], -1, neighbours)
    top = np.abs(shared.astype(np.float64)).max(-1, keepdims=True)
    return np.broadcast_to(top / 127 * (0.5 + 1e-4), shared.shape).reshape(x.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_product_and_gradient_equal_numpys(kernels: ModuleType, bits: int, group: int, dtype: mx.Dtype) -> None:
    w = matrix(Case(bits, group, dtype))
    for rows in ROWS:
        x, g = draw(rows, w.value.shape[1]), draw(rows, w.value.shape[0])
        (y,), (gx,) = mx.vjp(
            lambda x: [kernels.quantized_matmul(x, *w.packed, group, bits)], [mx.array(x)], [mx.array(g)]
        )
        within(y, x @ w.value.T, np.abs(x) @ w.magnitude.T * ROUNDING)
        within(gx, g @ w.value, np.abs(g) @ w.magnitude * ROUNDING)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_rounded_activations_err_by_half_a_step_at_most(kernels: ModuleType, bits: int, group: int) -> None:
    w = matrix(Case(bits, group, mx.bfloat16))
    for rows in ROWS:
        x = draw(rows, w.value.shape[1]) * np.exp(draw(rows, 1, seed=1) * 9)
        bound = np.abs(x) @ w.magnitude.T * ROUNDING
        rounded = kernels.quantized_matmul(mx.array(x), *w.packed, group, bits, int8=True)
        within(rounded, x @ w.value.T, bound + rounding_of_activations(x, bits) @ np.abs(w.value).T)
        # Bytes of 128 and more are multiplied by AVX-512 VNNI alone: elsewhere many rows keep their floats.
        if bits < 8 or rows <= FEW_ROUNDED or build.instruction_set() == "AVX-512 VNNI":
            assert np.abs(np.array(rounded) - x @ w.value.T).max() > bound.max(), "nothing was rounded"


def test_the_bound_on_rounding_is_tight(kernels: ModuleType) -> None:
    """Activations half a step from an integer, weights that only ever add up."""
    words, scales, biases = mx.quantize(mx.array(np.tile(np.arange(16.0), (1, 8))), group_size=32, bits=4)
    x = np.tile(np.array([127, *[0.5] * 7], np.float32), 16)[None]
    want = x.astype(np.float64) @ np.array(mx.dequantize(words, scales, biases, group_size=32, bits=4)).T
    got = np.array(kernels.quantized_matmul(mx.array(x), words, scales, biases, 32, 4, int8=True))
    bound = (rounding_of_activations(x, 4) * np.tile(np.arange(16.0), 8)).sum()
    assert 0.8 * bound < np.abs(got - want).max() <= bound


@pytest.mark.parametrize("bits", [4, 8, 3])
def test_a_matrix_larger_than_a_panel_is_multiplied_correctly(kernels: ModuleType, bits: int) -> None:
    w = matrix(Case(bits, 64, mx.bfloat16, N=1061, K=13 * 64))
    x = draw(40, 13 * 64)
    bound = np.abs(x) @ w.magnitude.T * ROUNDING + rounding_of_activations(x, bits) @ np.abs(w.value).T
    within(kernels.quantized_matmul(mx.array(x), *w.packed, 64, bits, True), x @ w.value.T, bound)
    for rows in (1, 40):
        x, g = draw(rows, 13 * 64), draw(rows, 1061)
        (y,), (gx,) = mx.vjp(lambda x: [kernels.quantized_matmul(x, *w.packed, 64, bits)], [mx.array(x)], [mx.array(g)])
        within(y, x @ w.value.T, np.abs(x) @ w.magnitude.T * ROUNDING)
        within(gx, g @ w.value, np.abs(g) @ w.magnitude * ROUNDING)


def test_more_rows_than_a_rounding_block_are_multiplied_correctly(kernels: ModuleType) -> None:
    w = matrix(Case(4, 32, N=33, K=96))
    x = draw(2051, 96)
    bound = np.abs(x) @ w.magnitude.T * ROUNDING + rounding_of_activations(x, 4) @ np.abs(w.value).T
    within(kernels.quantized_matmul(mx.array(x), *w.packed, 32, 4, True), x @ w.value.T, bound)


def test_products_are_correct_without_a_blas(kernels: ModuleType) -> None:
    w = matrix(Case(4, 32, N=530, K=480))
    x, g = draw(21, 480), draw(21, 530)
    mx.eval(*w.packed)
    openblas = blas._kept[0]
    kernels.divide_sgemm(0)
    try:
        (y,), (gx,) = mx.vjp(lambda x: [kernels.quantized_matmul(x, *w.packed, 32, 4)], [mx.array(x)], [mx.array(g)])
        mx.eval(y, gx)
    finally:
        kernels.divide_sgemm(blas._address(openblas.scipy_cblas_sgemm))
    within(y, x @ w.value.T, np.abs(x) @ w.magnitude.T * ROUNDING)
    within(gx, g @ w.value, np.abs(g) @ w.magnitude * ROUNDING)


LAYOUTS: dict[str, Callable[[mx.array], mx.array]] = {
    "transposed": lambda x: x.transpose(1, 0, 2),
    "every other": lambda x: x[:, ::2],
    "backwards": lambda x: x[::-1, :, ::-1],
    "broadcast": lambda x: mx.broadcast_to(x[:1, :1], x.shape),
    "columns of more": lambda x: mx.concatenate([x, x], axis=-1)[..., 16:-144],
    "a vector": lambda x: x[1, 2],
    "nothing": lambda x: x[:0],
}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_in_any_layout_are_read_correctly(kernels: ModuleType, layout: str, int8: bool) -> None:
    w = matrix(Case(4, 32))
    x = LAYOUTS[layout](mx.array(draw(3, 4, 160)))
    dense = mx.array(np.array(x))
    got, want = (kernels.quantized_matmul(a, *w.packed, 32, 4, int8) for a in (x, dense))
    assert got.shape == (*x.shape[:-1], 37)
    np.testing.assert_array_equal(np.array(got), np.array(want))


def test_a_slice_of_a_packed_matrix_is_multiplied_correctly(kernels: ModuleType) -> None:
    w, x = matrix(Case(4, 64, mx.float16, stack=(3,))), mx.array(draw(5, 448))
    for part in (lambda a: a[1], lambda a: a[2, 3:30], lambda a: a[0, ::2], lambda a: a[:, 7]):
        packed = [part(a) for a in w.packed]
        copied = [mx.array(np.array(a.astype(mx.float32))).astype(a.dtype) for a in packed[1:]]
        want = kernels.quantized_matmul(x, mx.array(np.array(packed[0])), *copied, 64, 4)
        np.testing.assert_array_equal(np.array(kernels.quantized_matmul(x, *packed, 64, 4)), np.array(want))


def test_the_gradient_has_a_gradient(kernels: ModuleType) -> None:
    w = matrix(Case(8, 32))

    def inner(x: mx.array, g: mx.array) -> mx.array:
        return mx.vjp(lambda x: [kernels.quantized_matmul(x, *w.packed, 32, 8)], [x], [g])[1][0]

    x, g, gg = draw(3, 160), draw(3, 37), draw(3, 160, seed=1)
    _, (got,) = mx.vjp(lambda g: [inner(mx.array(x), g)], [mx.array(g)], [mx.array(gg)])
    within(got, gg @ w.value.T, np.abs(gg) @ w.magnitude.T * ROUNDING)


def test_activations_are_not_rounded_under_a_gradient(kernels: ModuleType) -> None:
    w, x = matrix(Case(4, 32)), mx.array(draw(2, 160))
    exact = kernels.quantized_matmul(x, *w.packed, 32, 4)
    (traced,), _ = mx.vjp(lambda x: [kernels.quantized_matmul(x, *w.packed, 32, 4, True)], [x], [mx.ones((2, 37))])
    np.testing.assert_array_equal(np.array(traced), np.array(exact))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_infinities_and_nan_propagate(kernels: ModuleType, bad: float, int8: bool) -> None:
    w = matrix(Case(4, 32))
    for rows in (2, 20):
        x = draw(rows, 160)
        x[1, 150] = bad
        y = np.array(kernels.quantized_matmul(mx.array(x), *w.packed, 32, 4, int8))
        assert np.isfinite(np.delete(y, 1, 0)).all()
        assert not np.isfinite(y[1]).any()


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20])
def test_activations_of_any_size_are_rounded_correctly(kernels: ModuleType, scale: float) -> None:
    w = matrix(Case(4, 32))
    for rows in (2, 20):
        x = (draw(rows, 160) * scale).astype(np.float32)
        bound = np.abs(x) @ w.magnitude.T * ROUNDING + rounding_of_activations(x, 4) @ np.abs(w.value).T + 1e-27
        within(kernels.quantized_matmul(mx.array(x), *w.packed, 32, 4, True), x @ w.value.T, bound)


def test_the_largest_and_smallest_half_precision_scales_are_read_exactly(kernels: ModuleType) -> None:
    words = mx.full((6, 4), 0x11111111, mx.uint32)
    scales = mx.array([[6e-8], [6.1e-5], [65504], [-1.5], [np.inf], [np.nan]], mx.float16)
    y = kernels.quantized_matmul(mx.ones((1, 32)), words, scales, mx.zeros((6, 1), mx.float16), 32, 4)
    np.testing.assert_array_equal(np.array(y)[0], np.array(scales.astype(mx.float32))[:, 0] * 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_expert_products_and_gradients_equal_numpys(kernels: ModuleType, tokens: int, dtype: mx.Dtype) -> None:
    w = matrix(Case(4, 32, dtype, stack=(5,)))
    chosen = np.random.default_rng(tokens).integers(0, 5, (tokens, 3))
    x, g = draw(tokens, 3, 160), draw(tokens, 3, 37)
    (y,), (gx,) = mx.vjp(
        lambda x: [kernels.quantized_gather(x, *w.packed, mx.array(chosen), 32, 4)], [mx.array(x)], [mx.array(g)]
    )
    value, magnitude = w.value[chosen], w.magnitude[chosen] * ROUNDING
    within(y, np.einsum("btk,btnk->btn", x, value), np.einsum("btk,btnk->btn", np.abs(x), magnitude))
    within(gx, np.einsum("btn,btnk->btk", g, value), np.einsum("btn,btnk->btk", np.abs(g), magnitude))


def test_an_expert_that_does_not_exist_gives_nan(kernels: ModuleType) -> None:
    w = matrix(Case(4, 32, stack=(2,)))
    y = np.array(kernels.quantized_gather(mx.array(draw(3, 160)), *w.packed, mx.array([2, 0, -1]), 32, 4))
    np.testing.assert_array_equal(np.isnan(y).all(-1), [True, False, True])
    assert np.isfinite(y[1]).all()


def test_mismatched_shapes_and_types_are_refused(kernels: ModuleType) -> None:
    words, scales, biases = matrix(Case(4, 32)).packed
    x, product = mx.zeros((1, 160)), kernels.quantized_matmul
    for arguments, why in [
        ((x.astype(mx.float16), words, scales, biases, 32, 4), "float32"),
        ((x[:, :32], words, scales, biases, 32, 4), "width"),
        ((x, words, scales, biases, 64, 4), "whole groups"),
        ((x, words, scales, biases, 16, 4), "groups of"),
        ((x, words, scales, biases, 32, 7), "bits"),
        ((x, words, scales[:5], biases, 32, 4), "scale and a bias"),
        ((x, words, scales, biases.astype(mx.float16), 32, 4), "scale and a bias"),
        ((x, words, scales.astype(mx.int32), biases.astype(mx.int32), 32, 4), "scales are"),
        ((x, words[None], scales[None], biases[None], 32, 4), "one matrix"),
    ]:
        with pytest.raises(ValueError, match=why):
            product(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stock_native_and_reference_agree(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = matrix(Case(4, 64, dtype)), mx.array(draw(2, 3, 448))
    packed = PackedWeight(*w.packed, 64, 4)
    with dispatch.using("reference"):
        want = quantized_matmul(x, packed)
    with using_activations("float"):
        exact = quantized_matmul(x, packed)
    with dispatch.using("stock"):
        stock = quantized_matmul(x, packed)
    rounded = quantized_matmul(x, packed)
    for got, tolerance in ((exact, 1e-2 if dtype == mx.bfloat16 else 2e-3), (stock, 1e-2), (rounded, 3e-2)):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(np.array(got), np.array(want), atol=tolerance * np.abs(np.array(want)).max())
    assert (exact != rounded).any().item()


@pytest.mark.parametrize("tokens", [1, 20])
def test_stock_native_and_reference_agree_on_experts(tokens: int) -> None:
    w = PackedWeight(*matrix(Case(4, 32, stack=(4,))).packed, 32, 4)
    chosen = mx.array(np.random.default_rng(0).integers(0, 4, (1, tokens, 2)))
    for x in (mx.array(draw(1, tokens, 1, 1, 160)), mx.array(draw(1, tokens, 2, 1, 160))):
        with dispatch.using("reference"):
            want = quantized_gather_matmul(x, w, chosen)
        with dispatch.using("stock"):
            stock = quantized_gather_matmul(x, w, chosen)
        with using_activations("float"):
            exact = quantized_gather_matmul(x, w, chosen)
        np.testing.assert_allclose(np.array(exact), np.array(want), atol=1e-4)
        np.testing.assert_allclose(np.array(stock), np.array(want), atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_embedding_rows_are_dequantized(kernels: ModuleType, bits: int, group: int, dtype: mx.Dtype) -> None:
    w = matrix(Case(bits, group, dtype))
    tokens = np.array([[0, 36, 5], [36, -1, -37]])
    got = quantized_rows(PackedWeight(*w.packed, group, bits), mx.array(tokens))
    assert got.shape == (2, 3, WIDTHS[group])
    within(got, w.value[tokens], ROUNDING * w.magnitude[tokens])
    assert quantized_rows(PackedWeight(*w.packed, group, bits), mx.zeros((0,), mx.int32)).shape == (0, WIDTHS[group])


@pytest.mark.parametrize("token", [37, -38, 2**31 - 1])
def test_an_invalid_row_is_nan_and_reads_no_memory(kernels: ModuleType, token: int) -> None:
    w = matrix(Case(4, 64))
    rows = np.array(quantized_rows(PackedWeight(*w.packed, 64, 4), mx.array([3, token])))
    assert np.isnan(rows[1]).all()
    within(mx.array(rows[0]), w.value[3], ROUNDING * w.magnitude[3])


def test_other_packings_fall_back_to_mlx() -> None:
    x, dense = mx.array(draw(2, 64)), mx.array(draw(5, 64))
    words, scales = mx.quantize(dense, mode="mxfp4")
    packed = PackedWeight(words, scales, None, 32, 4, "mxfp4")
    np.testing.assert_allclose(
        np.array(quantized_matmul(x, packed)), np.array(x @ packed.dequantized().T), rtol=1e-4, atol=1e-4
    )


def test_half_precision_inputs_give_half_precision_results() -> None:
    w, x = PackedWeight(*matrix(Case(4, 32, mx.bfloat16)).packed, 32, 4), mx.array(draw(2, 160)).astype(mx.bfloat16)
    y = quantized_matmul(x, w)
    assert y.dtype == mx.bfloat16
    want = np.array(x.astype(mx.float32)) @ np.array(w.dequantized().astype(mx.float32)).T
    np.testing.assert_allclose(np.array(y.astype(mx.float32)), want, atol=0.03 * np.abs(want).max())
