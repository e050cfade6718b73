"""Products with chosen 16-bit expert matrices, against float64 numpy, forward and every gradient."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.ops.experts import gather_matmul

TYPES = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)

Array = np.ndarray


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


def wide(array: mx.array) -> Array:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def close(got: mx.array, want: Array) -> None:
    np.testing.assert_allclose(wide(got), want, rtol=1e-5, atol=2e-6 * np.abs(want).max())


@TYPES
@pytest.mark.parametrize("tokens", [1, 2, 9, 130])
def test_products_and_gradients_equal_the_definition(kernels: ModuleType, tokens: int, dtype: mx.Dtype) -> None:
    w, chosen = mx.array(draw(5, 37, 51)).astype(dtype), np.random.default_rng(tokens).integers(0, 4, (tokens, 3))
    x, g = draw(tokens, 3, 51), draw(tokens, 3, 37)
    (y,), (gx, gw) = mx.vjp(
        lambda x, w: [kernels.linear_gather(x, w, mx.array(chosen))], [mx.array(x), w], [mx.array(g)]
    )
    close(y, np.einsum("btk,btnk->btn", x, wide(w)[chosen]))
    close(gx, np.einsum("btn,btnk->btk", g, wide(w)[chosen]))
    want = np.zeros(w.shape)
    np.add.at(want, chosen, g[..., :, None].astype(np.float64) * x[..., None, :])
    assert gw.dtype == dtype
    spacing = {mx.bfloat16: 2**-8, mx.float16: 2**-11}[dtype]
    np.testing.assert_allclose(wide(gw), want, rtol=spacing, atol=1e-5)
    assert (wide(gw)[4] == 0).all()  # not chosen for any row


@TYPES
@pytest.mark.parametrize("tokens", [1, 20])
def test_stock_native_and_reference_agree(tokens: int, dtype: mx.Dtype) -> None:
    w = mx.array(draw(4, 24, 40)).astype(dtype)
    chosen = mx.array(np.random.default_rng(0).integers(0, 4, (1, tokens, 2)))
    for x in (mx.array(draw(1, tokens, 1, 1, 40)), mx.array(draw(1, tokens, 2, 1, 40))):
        results = []
        for choice in ("stock", "native"):
            with dispatch.using(choice):  # type: ignore[arg-type]
                slope = mx.grad(lambda x: mx.square(gather_matmul(x, w, chosen)).sum())(x)
                results.append([gather_matmul(x, w, chosen), slope])
        for stock, native in zip(*results, strict=True):
            assert stock.dtype == native.dtype == mx.float32
            np.testing.assert_allclose(np.array(native), np.array(stock), rtol=1e-4, atol=1e-4)


def test_slices_and_transposed_layouts_are_read_correctly(kernels: ModuleType) -> None:
    w, x = mx.array(draw(6, 20, 33)).astype(mx.bfloat16), mx.array(draw(33, 7)).T
    chosen = mx.array([0, 2, 1, 1, 0, 2, 2])
    for part in (w[::2], w[::-1][:3], w[:3, ::2]):
        want = np.einsum("bk,bnk->bn", wide(x), wide(part)[np.array(chosen)])
        close(kernels.linear_gather(x, part, chosen), want)


def test_an_expert_that_does_not_exist_gives_nan(kernels: ModuleType) -> None:
    y = np.array(kernels.linear_gather(mx.ones((3, 8)), mx.ones((2, 4, 8), mx.bfloat16), mx.array([2, 0, -1])))
    np.testing.assert_array_equal(np.isnan(y).all(-1), [True, False, True])
    np.testing.assert_array_equal(y[1], [8] * 4)


def test_mismatched_shapes_and_types_are_refused(kernels: ModuleType) -> None:
    x, w, chosen = mx.zeros((2, 4)), mx.zeros((3, 5, 4), mx.bfloat16), mx.array([0, 1])
    for arguments, why in [
        ((x, w.astype(mx.float32), chosen), "bfloat16 or float16"),
        ((x.astype(mx.float16), w, chosen), "x of float32"),
        ((x, w[0], chosen), r"\(E, F, D\)"),
        ((x[:, :3], w, chosen), r"\(E, F, D\)"),
        ((x, w, chosen[:1]), "each row"),
    ]:
        with pytest.raises(ValueError, match=why):
            kernels.linear_gather(*arguments)
