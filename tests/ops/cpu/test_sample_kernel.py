"""Drawing in one pass against the filters one by one, which the numpy reference is for."""

from __future__ import annotations

import dataclasses
import io
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.generation.request import SamplingParams
from macllm.generation.sampling.sampler import Sampler, logprobs_of
from macllm.ops import dispatch

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
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, top_k=7, typical_p=0.3, xtc_probability=1.0),
    SamplingParams(typical_p=0.7),
    SamplingParams(typical_p=0.0),
    SamplingParams(typical_p=0.95, temperature=0.5),
    SamplingParams(typical_p=0.9, top_k=60, top_p=0.9, min_p=0.01),
    SamplingParams(xtc_probability=0.5, xtc_threshold=0.1),
    SamplingParams(xtc_probability=1.0, xtc_threshold=0.0),
    SamplingParams(xtc_probability=0.5, xtc_threshold=0.02, top_k=30, temperature=1.5),
    SamplingParams(xtc_probability=0.7, xtc_threshold=0.0, top_p=0.8, typical_p=0.9),
]
PENALTIES = [
    SamplingParams(repetition_penalty=1.3),
    SamplingParams(repetition_penalty=0.8, temperature=0.0),
    SamplingParams(presence_penalty=1.5, temperature=0.0),
    SamplingParams(frequency_penalty=0.37),
    SamplingParams(frequency_penalty=-0.2, repetition_penalty=1.1, presence_penalty=0.3, penalty_window=5),
    SamplingParams(logit_bias=((1, 2.5), (0, -np.inf), (1, 0.7)), temperature=0.6),
    SamplingParams(dry_multiplier=0.8),
    SamplingParams(dry_multiplier=2.0, dry_base=1.0, dry_allowed_length=1, temperature=0.0),
    SamplingParams(dry_multiplier=0.8, dry_base=3.0, dry_allowed_length=1, dry_window=6, dry_breakers=(2,)),
    SamplingParams(
        temperature=0.7,
        top_k=40,
        repetition_penalty=1.2,
        penalty_window=9,
        dry_multiplier=1.1,
        dry_window=4,
        logit_bias=((0, 1.0),),
        typical_p=0.9,
        xtc_probability=0.3,
    ),
]


def logits_of(size: int, spread: float = 4.0, seed: int = 0) -> mx.array:
    return mx.array((np.random.default_rng(seed + size).normal(size=size) * spread).astype(np.float32))


def label(params: SamplingParams) -> str:
    fields = ("temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold")
    changed = {name: getattr(params, name) for name in fields}
    return "-".join(f"{n[:5]}{v}" for n, v in changed.items() if v != getattr(SamplingParams(), n)) or "all"


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 33, 1000, 9001])
@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_the_kernel_draws_what_the_filters_one_by_one_draw(params: SamplingParams, size: int) -> None:
    sampler, logits, steps = Sampler(params, 5, (), size), logits_of(size), 12
    native = mx.stack([sampler(logits, step) for step in range(steps)])
    with dispatch.using("stock"):
        stock = mx.stack([sampler(logits, step) for step in range(steps)])
    np.testing.assert_array_equal(np.array(native), np.array(stock))


@pytest.mark.parametrize("size", [1, 3, 17, 500])
@pytest.mark.parametrize("prompt", [(), (0,), (2, 1, 2, 1, 2), tuple(range(16)) * 3])
@pytest.mark.parametrize("params", PENALTIES)
def test_the_kernel_penalizes_as_the_ops_one_by_one(params: SamplingParams, prompt: tuple[int, ...], size: int) -> None:
    """Flat logits, so that penalties decide; what was drawn joins the history."""
    history, logits = tuple(token % size for token in prompt), logits_of(size, spread=0.5)
    bias = tuple((token % size, amount) for token, amount in params.logit_bias)
    params = dataclasses.replace(
        params, logit_bias=bias, dry_breakers=tuple(b for b in params.dry_breakers if b < size)
    )
    drawn = []
    for choice in ("stock", "native"):
        sampler = Sampler(params, 8, history, size)
        with dispatch.using(choice):  # type: ignore[arg-type]
            drawn.append(mx.stack([sampler(logits, step) for step in range(25)]).tolist())
    assert drawn[0] == drawn[1]


def test_the_ops_one_by_one_can_take_over_in_the_middle() -> None:
    params = SamplingParams(repetition_penalty=1.3, dry_multiplier=1.0, penalty_window=7)
    logits, whole, handed = logits_of(20, 0.5), Sampler(params, 1, (3, 4, 3), 20), Sampler(params, 1, (3, 4, 3), 20)
    want = [int(whole(logits, step).item()) for step in range(20)]
    got = [int(handed(logits, step).item()) for step in range(10)]
    with dispatch.using("stock"):
        got += [int(handed(logits, step).item()) for step in range(10, 15)]
    got += [int(handed(logits, step).item()) for step in range(15, 20)]
    assert got == want


@pytest.mark.parametrize("params", [*FILTERS, *PENALTIES])
def test_a_draw_is_one_operation(params: SamplingParams) -> None:
    graph = io.StringIO()
    sampler, logits = Sampler(params, 1, (1, 2, 1, 2), 50), logits_of(50)
    mx.export_to_dot(graph, sampler(logits, 0))
    assert sum("rectangle" in line for line in graph.getvalue().splitlines()) == 1


def test_a_long_repeat_is_penalized_without_end() -> None:
    params = SamplingParams(dry_multiplier=5.0, dry_base=100.0, temperature=0.0)
    assert int(Sampler(params, 0, (0, 1) * 5000, 3)(mx.array([9.0, 8.0, -1e20]), 0).item()) == 1
    assert int(Sampler(params, 0, (0, 1) * 5000, 3)(mx.array([1e20, 8.0, -1e20]), 0).item()) == 1
    worst = Sampler(params, 0, (0,) * 100_000, 2)
    assert int(worst(mx.array([1e29, -1e29]), 0).item()) == 1


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


@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_what_noise_cannot_lift_is_all_that_is_passed_over(spread: float) -> None:
    """Against Gumbel's trick in numpy with MLX's noise: close logits, where any may win, and distant ones."""
    for size in (7, 4096, 9001):
        logits = logits_of(size, spread)
        sampler = Sampler(SamplingParams(), 4, (), size)
        for step in range(30):
            noise = mx.random.gumbel((size,), key=mx.random.key((4 << 32) | step))
            assert int(sampler(logits, step).item()) == int(mx.argmax(logits + noise).item())


def test_noise_is_that_of_mlx() -> None:
    """Equal logits are drawn by noise alone: at both ends and in the middle."""
    for size in (1, 2, 7, 16, 31, 4097):
        sampler = Sampler(SamplingParams(), 9, (), size)
        for step in range(40):
            key = mx.random.key((9 << 32) | step)
            want = int(mx.argmax(mx.random.gumbel((size,), key=key)).item())
            assert int(sampler(mx.zeros(size), step).item()) == want


def test_what_just_misses_the_threshold_is_no_top_choice() -> None:
    logits = mx.log(mx.array([0.5, 0.2004, 0.2, 0.0996]))
    sampler = Sampler(SamplingParams(xtc_probability=1.0, xtc_threshold=0.1), 2, (), 4)
    assert {int(sampler(logits, step).item()) for step in range(60)} == {2, 3}


@pytest.mark.parametrize("size", [2, 5, 16, 1023, 1024, 1025, 151_936])
def test_the_likeliest_is_the_first_of_the_largest(size: int) -> None:
    greedy = Sampler(SamplingParams(temperature=0.0), 0, (), size)
    for place in {0, 1, size // 2, size - 2, size - 1}:
        logits = np.array(logits_of(size))
        logits[place] = 99
        assert int(greedy(mx.array(logits), 0).item()) == place
        logits[-1] = 99
        assert int(greedy(mx.array(logits), 0).item()) == place
    assert int(greedy(mx.full(size, -np.inf), 0).item()) == 0


@pytest.mark.parametrize("params", FILTERS, ids=label)
def test_numbers_that_are_none_do_no_harm(params: SamplingParams) -> None:
    for odd in ([np.nan] * 40, [-np.inf] * 40, [np.nan, -np.nan, 1.0, -np.inf] * 10, [np.inf, 1.0] * 20):
        for step in range(3):
            assert 0 <= int(Sampler(params, 1, (), 40)(mx.array(np.float32(odd)), step).item()) < 40


def test_half_precision_and_layouts() -> None:
    logits = logits_of(500).astype(mx.bfloat16)
    sampler = Sampler(SamplingParams(top_p=0.9), 1, (), 500)
    assert int(sampler(logits, 0).item()) == int(sampler(logits.astype(mx.float32), 0).item())
    strided = mx.repeat(logits.astype(mx.float32), 2)[::2]
    assert int(sampler(strided, 0).item()) == int(sampler(logits, 0).item())


@pytest.mark.parametrize("size", [1, 2, 30, 9001])
@pytest.mark.parametrize("alternatives", [0, 1, 5, 40])
def test_logprobs_in_one_operation_equal_those_in_many(size: int, alternatives: int) -> None:
    logits, token = logits_of(size), mx.array(size // 3, dtype=mx.uint32)
    graph = io.StringIO()
    mx.export_to_dot(graph, *logprobs_of(logits, token, alternatives))
    assert sum("rectangle" in line for line in graph.getvalue().splitlines()) == 1
    native = [np.array(part) for part in logprobs_of(logits, token, alternatives)]
    with dispatch.using("stock"):
        chosen, *rivals = (np.array(part) for part in logprobs_of(logits, token, alternatives))
    np.testing.assert_allclose(native[0], chosen, atol=1e-5)
    if rivals:
        order = np.argsort(-rivals[1], kind="stable")
        np.testing.assert_array_equal(native[1], rivals[0][order])
        np.testing.assert_allclose(native[2], rivals[1][order], atol=1e-5)


def test_what_does_not_fit_is_refused(kernels: ModuleType) -> None:
    plan = kernels.DrawPlan([1.0, *[0.0] * 15], [], [], [])
    for logits in (mx.zeros((2, 3)), mx.zeros(0), mx.zeros(3, mx.float16)):
        with pytest.raises(ValueError, match=r"logits are \(V,\)"):
            kernels.draw(plan, logits, None, 0, 0)
        with pytest.raises(ValueError, match=r"logits are \(V,\)"):
            kernels.logprobs(logits, mx.array(0), 1)
    with pytest.raises(ValueError, match="history"):
        kernels.draw(plan, mx.zeros(3), mx.zeros(3), 0, 0)
    with pytest.raises(ValueError, match="16 numbers"):
        kernels.DrawPlan([1.0], [], [], [])
    with pytest.raises(ValueError, match="a count of at most V"):
        kernels.logprobs(mx.zeros(3), mx.array(0), 4)
