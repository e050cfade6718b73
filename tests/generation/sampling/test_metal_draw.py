"""Tokens drawn by the Metal kernels, in the simulator, for the sampler's parameters."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler, candidates
from macllm.ops import using
from tests.simulator.intercept import simulated
from tests.simulator.run import RunOptions

WITH_KERNEL = [
    SamplingParams(),
    SamplingParams(temperature=0.4, top_k=10**12, top_p=0.9),
    SamplingParams(temperature=1.5, top_k=7, min_p=0.05),
    SamplingParams(temperature=0.7, top_p=0.0),
]
WITHOUT_KERNEL = [
    SamplingParams(temperature=0),
    SamplingParams(repetition_penalty=1.2),
    SamplingParams(typical_p=0.5),
    SamplingParams(xtc_probability=0.3),
    SamplingParams(dry_multiplier=0.5),
    SamplingParams(logit_bias=((3, 1.0),)),
]


def logits(size: int = 300) -> mx.array:
    return mx.array(3 * np.random.default_rng(1).normal(size=size).astype(np.float32))


@pytest.mark.parametrize("params", WITH_KERNEL, ids=str)
def test_draws_of_the_kernel_follow_the_filtered_distribution(params: SamplingParams) -> None:
    values, tokens = candidates(logits(), params)
    want = np.zeros(300)
    want[np.arange(300) if tokens is None else np.array(tokens)] = np.array(mx.softmax(values))
    count, draws = 25, np.zeros(300)
    with simulated(RunOptions(build="fast")) as log, using("metal"):
        sampler = Sampler(params, 7, [], 300)
        for step in range(count):
            draws[sampler(logits(), step).item()] += 1
        again = Sampler(params, 7, [], 300)(logits(), 5)
        assert again.item() == Sampler(params, 7, [], 300)(logits(), 5).item()
    assert len(log.dispatches) == 2 * (count + 2)
    assert draws[want == 0].sum() == 0
    spread = np.sqrt(count * want * (1 - want))
    assert (np.abs(draws - count * want) <= 4.5 * spread + 1).all()


@pytest.mark.parametrize("params", WITHOUT_KERNEL, ids=str)
def test_parameters_without_a_kernel_draw_the_tokens_of_mlx_operations(params: SamplingParams) -> None:
    with using("stock"):
        want = Sampler(params, 7, [1, 2, 3], 300)(logits(), 0)
    with simulated(RunOptions(build="fast")) as log, using("metal"):
        got = Sampler(params, 7, [1, 2, 3], 300)(logits(), 0)
    assert log.dispatches == []
    assert got.item() == want.item()
