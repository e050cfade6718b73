"""Tokens drawn by the Metal kernels, in the simulator."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import using
from macllm.ops.draw_params import DrawParams
from macllm.ops.sampling import Draw
from macllm.ops.sampling_reference import DrawReference, candidates
from tests.simulator.intercept import simulated
from tests.simulator.run import RunOptions

WITH_KERNEL = [
    DrawParams(),
    DrawParams(temperature=0.4, top_k=10**12, top_p=0.9),
    DrawParams(temperature=1.5, top_k=7, min_p=0.05),
    DrawParams(temperature=0.7, top_p=0.0),
]
WITHOUT_KERNEL = [
    DrawParams(temperature=0),
    DrawParams(repetition_penalty=1.2),
    DrawParams(typical_p=0.5),
    DrawParams(xtc_probability=0.3),
    DrawParams(dry_multiplier=0.5),
    DrawParams(bias=((3, 1.0),)),
]


def logits(size: int = 300) -> mx.array:
    return mx.array(3 * np.random.default_rng(1).normal(size=size).astype(np.float32))


@pytest.mark.parametrize("params", WITH_KERNEL, ids=str)
def test_draws_of_the_kernel_follow_the_filtered_distribution(params: DrawParams) -> None:
    values, tokens = candidates(logits(), params)
    want = np.zeros(300)
    want[np.arange(300) if tokens is None else np.array(tokens)] = np.array(mx.softmax(values))
    count, draws = 12, np.zeros(300)
    with simulated(RunOptions(build="fast")) as log, using("metal"):
        draw = Draw(params, [], 7)
        for step in range(count):
            draws[draw(logits(), step).item()] += 1
        again = Draw(params, [], 7)(logits(), 5)
        assert again.item() == Draw(params, [], 7)(logits(), 5).item()
    assert len(log.dispatches) == 2 * (count + 2)
    assert draws[want == 0].sum() == 0
    spread = np.sqrt(count * want * (1 - want))
    assert (np.abs(draws - count * want) <= 4.5 * spread + 1).all()


@pytest.mark.parametrize("params", WITHOUT_KERNEL, ids=str)
def test_rules_that_the_metal_kernel_lacks_are_left_to_the_reference(params: DrawParams) -> None:
    want = DrawReference(params, [1, 2, 3], 7)(logits(), 0)
    with simulated(RunOptions(build="fast")) as log, using("metal"):
        got = Draw(params, [1, 2, 3], 7)(logits(), 0)
    assert log.dispatches == []
    assert got.item() == want.item()


def test_logits_that_may_be_infinite_are_left_to_the_reference() -> None:
    with simulated(RunOptions(build="fast")) as log, using("metal"):
        got = Draw(DrawParams(), [], 7, finite=False)(logits(), 0)
    assert log.dispatches == []
    assert got.item() == DrawReference(DrawParams(), [], 7)(logits(), 0).item()
