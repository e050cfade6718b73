"""Drawing in one pass against the filters one by one, which the numpy reference is for."""

from __future__ import annotations

from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.generate.request import SamplingParams
from macllm.generate.sampler import Sampler
from macllm.ops import dispatch
from macllm.ops.sampling import Filters, logsumexp, sample

FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.9),
    SamplingParams(top_k=1),
    SamplingParams(top_k=40),
    SamplingParams(top_k=700, temperature=1.3),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.9, temperature=0.6),
    SamplingParams(top_p=0.999, temperature=3.0),
    SamplingParams(top_p=0.0),
    SamplingParams(min_p=0.05),
    SamplingParams(min_p=1.0),
    SamplingParams(top_k=50, top_p=0.8, min_p=0.02, temperature=0.8),
]


def logits_of(size: int, spread: float = 4.0, seed: int = 0) -> mx.array:
    return mx.array((np.random.default_rng(seed + size).normal(size=size) * spread).astype(np.float32))


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 33, 1000, 9001])
@pytest.mark.parametrize("params", FILTERS, ids=lambda p: f"{p.temperature}-{p.top_k}-{p.top_p}-{p.min_p}")
def test_the_kernel_draws_what_the_filters_one_by_one_draw(params: SamplingParams, size: int) -> None:
    sampler, logits, steps = Sampler(params, 5, (), size), logits_of(size), 12
    native = mx.stack([sampler(logits, step) for step in range(steps)])
    with dispatch.using("stock"):
        stock = mx.stack([sampler(logits, step) for step in range(steps)])
    np.testing.assert_array_equal(np.array(native), np.array(stock))


@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.99999])
@pytest.mark.parametrize("spread", [0.0, 0.5, 6.0])
def test_a_real_vocabulary(top_p: float, spread: float) -> None:
    size = 30_011
    sampler, logits = Sampler(SamplingParams(top_p=top_p), 1, (), size), logits_of(size, spread)
    with dispatch.using("stock"):
        stock = [int(sampler(logits, step).item()) for step in range(3)]
    assert [int(sampler(logits, step).item()) for step in range(3)] == stock


def test_equal_logits_keep_their_order() -> None:
    logits = mx.array(np.repeat(np.float32([1.0, 2.0, -0.0, 0.0, 2.0]), 9))
    for params in (SamplingParams(top_k=18), SamplingParams(top_p=0.97), SamplingParams(top_k=45, top_p=0.97)):
        sampler = Sampler(params, 3, (), 45)
        native = [int(sampler(logits, step).item()) for step in range(60)]
        with dispatch.using("stock"):
            assert [int(sampler(logits, step).item()) for step in range(60)] == native


def test_noise_is_that_of_mlx(kernels: ModuleType) -> None:
    """Far apart logits are drawn by noise alone only where the noise is MLX's, at both ends and in the middle."""
    for size in (1, 2, 7, 16, 31, 4097):
        for step in range(40):
            key = mx.random.key((9 << 32) | step)
            want = int(mx.argmax(mx.random.gumbel((size,), key=key)).item())
            assert int(kernels.sample(mx.zeros(size), 9, step, 1.0, 0, 1.0, 0.0).item()) == want


@pytest.mark.parametrize(
    "filters", [Filters(1, 0, 1, 0), Filters(1, 3, 1, 0), Filters(1, 0, 0.9, 0), Filters(1, 3, 0.9, 0.1)]
)
def test_numbers_that_are_none_do_no_harm(filters: Filters) -> None:
    for odd in ([np.nan] * 40, [-np.inf] * 40, [np.nan, -np.nan, 1.0, -np.inf] * 10, [np.inf, 1.0] * 20):
        token = sample(mx.array(np.float32(odd)), filters, 1, 2)
        assert token is not None
        assert 0 <= int(token.item()) < 40


def test_half_precision_and_layouts() -> None:
    logits = logits_of(500).astype(mx.bfloat16)
    sampler = Sampler(SamplingParams(top_p=0.9), 1, (), 500)
    assert int(sampler(logits, 0).item()) == int(sampler(logits.astype(mx.float32), 0).item())
    strided = mx.repeat(logits.astype(mx.float32), 2)[::2]
    assert int(sampler(strided, 0).item()) == int(sampler(logits, 0).item())


def test_logsumexp_is_served() -> None:
    x = logits_of(5000)
    exact = np.log(np.exp(np.array(x).astype(np.float64)).sum())
    assert abs(logsumexp(x).item() - exact) < 1e-5
    with dispatch.using("stock"):
        assert abs(logsumexp(x).item() - exact) < 1e-4
