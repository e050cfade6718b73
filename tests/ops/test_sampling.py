"""Draws and their filters against the papers, in float64; the draws also with MLX's operations alone."""

from __future__ import annotations

import io
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.ops.draw_params import DrawParams
from macllm.ops.sampling import Draw
from macllm.ops.sampling_reference import candidates, drop_top_choices
from tests.ops import literal_sampling as reference

SIZES = [1, 2, 3, 17, 9001]


@pytest.fixture(params=["native", "reference"])
def served(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draws as this machine makes them, then by the reference."""
    with dispatch.using(request.param):
        yield


each_implementation = pytest.mark.usefixtures("served")


def random_logits(size: int, seed: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def probabilities(logits: np.ndarray, params: DrawParams) -> np.ndarray:
    """Probabilities of the draw, in the order of the vocabulary."""
    values, tokens = candidates(mx.array(logits), params)
    out = np.zeros(len(logits))
    out[np.arange(len(logits)) if tokens is None else np.array(tokens)] = np.array(mx.softmax(values))
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (DrawParams(), {}),
        (DrawParams(temperature=0.3), {"temperature": 0.3}),
        (DrawParams(temperature=2.5), {"temperature": 2.5}),
        (DrawParams(top_k=1), {"k": 1}),
        (DrawParams(top_k=5), {"k": 5}),
        (DrawParams(top_k=10**9), {"k": 10**9}),
        (DrawParams(top_p=0.9), {"p": 0.9}),
        (DrawParams(top_p=0.05), {"p": 0.05}),
        (DrawParams(top_p=0.0), {"p": 0.0}),
        (DrawParams(min_p=0.1), {"m": 0.1}),
        (DrawParams(min_p=1.0), {"m": 1.0}),
        (DrawParams(typical_p=0.5), {"t": 0.5}),
        (DrawParams(typical_p=0.0), {"t": 0.0}),
        (
            DrawParams(temperature=0.7, top_k=40, top_p=0.95, min_p=0.02, typical_p=0.9),
            {"temperature": 0.7, "k": 40, "p": 0.95, "m": 0.02, "t": 0.9},
        ),
    ],
)
def test_filters_give_the_distributions_of_their_papers(size: int, params: DrawParams, expected: dict) -> None:
    for seed in range(3):
        logits = random_logits(size, seed)
        np.testing.assert_allclose(
            probabilities(logits, params), reference.distribution(logits, **expected), atol=2e-6, rtol=2e-4
        )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_keeps_k_tokens_even_among_ties(k: int) -> None:
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0], dtype=np.float32)
    kept = probabilities(logits, DrawParams(top_k=k)) > 0
    assert kept.sum() == k
    np.testing.assert_array_equal(np.sort(logits[kept]), np.sort(logits)[::-1][:k][::-1])


@pytest.mark.parametrize(("p", "count"), [(0.1, 1), (0.25, 2), (0.5, 4), (0.95, 8), (0.0, 1)])
def test_top_p_keeps_the_fewest_tied_tokens_that_hold_the_mass(p: float, count: int) -> None:
    kept = probabilities(np.zeros(8, dtype=np.float32), DrawParams(top_p=p)) > 0
    assert kept.sum() == count


def test_min_p_of_one_keeps_all_ties_for_the_likeliest() -> None:
    kept = probabilities(np.array([3, 1, 3, 2.9], dtype=np.float32), DrawParams(min_p=1.0)) > 0
    np.testing.assert_array_equal(kept, [True, False, True, False])


@each_implementation
@pytest.mark.parametrize(
    "params",
    [
        DrawParams(top_k=3),
        DrawParams(top_p=0.9),
        DrawParams(min_p=0.01),
        DrawParams(typical_p=0.9),
        DrawParams(typical_p=0.9, top_k=4, top_p=0.99, min_p=0.001, temperature=0.5),
        DrawParams(xtc_probability=1.0, xtc_threshold=0.05),
    ],
)
def test_a_banned_token_is_never_drawn_and_never_turns_others_into_nan(params: DrawParams) -> None:
    logits = np.full(50, -np.inf, dtype=np.float32)
    logits[[7, 11, 13]] = [1.0, 0.5, 0.0]
    draw = Draw(params, (), 3)
    drawn = {int(draw(mx.array(logits), step).item()) for step in range(60)}
    assert drawn <= {7, 11, 13}
    assert 7 in drawn or params.xtc_probability
    if not params.xtc_probability:
        assert not np.isnan(probabilities(logits, params)).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.1, 0.4, 0.5, 1.0])
def test_xtc_drops_all_tokens_above_the_least_likely_top_choice(size: int, threshold: float) -> None:
    for seed, spread in enumerate([0.1, 0.5, 1.0, 4.0]):
        logits = random_logits(size, seed, spread) if size < 1000 else random_logits(size, seed, spread * 4)
        kept = np.array(drop_top_choices(mx.array(logits), threshold)) > -np.inf
        np.testing.assert_array_equal(kept, reference.xtc(logits, threshold))


@each_implementation
def test_xtc_applies_at_each_step_with_its_probability() -> None:
    logits = mx.array([4.0, 4.0 - 1e-3, -20.0])  # token 0 can be drawn only where XTC stays out
    draw = Draw(DrawParams(xtc_probability=0.3, xtc_threshold=0.1), (), 11)
    first = sum(int(draw(logits, step).item()) == 0 for step in range(1000))
    assert abs(first / 1000 - 0.7 / 2) < 0.04


@each_implementation
@pytest.mark.parametrize(
    "params",
    [
        DrawParams(),
        DrawParams(temperature=0.6),
        DrawParams(top_k=6),
        DrawParams(top_p=0.8),
        DrawParams(typical_p=0.8),
        DrawParams(min_p=0.1, temperature=1.5),
    ],
)
def test_draws_follow_the_distribution(params: DrawParams) -> None:
    """Pearson's chi-square over 1500 steps of one seed, against the 99.9 % quantile (Wilson and Hilferty)."""
    logits = random_logits(23, 5, 1.5)
    expected = reference.distribution(
        logits, temperature=params.temperature, k=params.top_k, p=params.top_p, m=params.min_p, t=params.typical_p
    )
    draw, array, steps = Draw(params, (), 2024), mx.array(logits), 1500
    drawn = np.array(mx.stack([draw(array, step) for step in range(steps)]))
    counts = np.bincount(drawn, minlength=23)
    assert counts[expected == 0].sum() == 0
    common = expected * steps >= 5
    rare = ~common & (expected > 0)
    observed = np.append(counts[common], counts[rare].sum())
    wanted = np.append(expected[common], expected[rare].sum()) * steps
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3


@each_implementation
def test_xtc_decisions_are_independent_of_the_draws() -> None:
    """Pearson's chi-square over 3000 steps against the mixture of both outcomes, 99.9 % quantile."""
    logits = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5], dtype=np.float32)
    kept = np.where(reference.xtc(logits, 0.15), logits.astype(np.float64), -np.inf)
    expected = 0.5 * reference.softmax(logits.astype(np.float64)) + 0.5 * reference.softmax(kept)
    draw, steps = Draw(DrawParams(xtc_probability=0.5, xtc_threshold=0.15), (), 77), 3000
    drawn = np.array(mx.stack([draw(mx.array(logits), step) for step in range(steps)]))
    observed = np.bincount(drawn, minlength=6)
    assert ((observed - expected * steps) ** 2 / (expected * steps)).sum() < 20.5


@each_implementation
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    "params",
    [
        DrawParams(temperature=0.7, top_p=0.9),
        DrawParams(temperature=1.3, typical_p=0.8, min_p=0.001),
        DrawParams(temperature=0.0, bias=((5, 0.013), (6, 0.011)), frequency_penalty=0.003),
        DrawParams(temperature=0.0, frequency_penalty=0.003),
    ],
)
def test_logits_of_16_bits_draw_the_tokens_of_their_float32_values(params: DrawParams, dtype: mx.Dtype) -> None:
    few = (mx.full(3000, 9.0) if params.temperature == 0 else mx.array(random_logits(3000, 8, 1.0))).astype(dtype)
    drawn = []
    for logits in (few, few.astype(mx.float32)):
        draw = Draw(params, (1, 2), 5)
        drawn.append([int(draw(logits, step).item()) for step in range(50)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 3


@each_implementation
def test_draws_of_neighbouring_steps_and_seeds_are_independent() -> None:
    logits = mx.zeros(2)
    table = np.array(
        [[int(Draw(DrawParams(), (), seed)(logits, step).item()) for step in range(64)] for seed in range(32)]
    )
    assert abs(table.mean() - 0.5) < 0.05
    assert abs((table[:, 1:] == table[:, :-1]).mean() - 0.5) < 0.05
    assert abs((table[1:] == table[:-1]).mean() - 0.5) < 0.05


@each_implementation
def test_a_draw_depends_on_seed_and_step_alone() -> None:
    logits = mx.array(random_logits(1000, 1))
    params = DrawParams(top_p=0.95, xtc_probability=0.5)
    mx.random.seed(1)
    forwards = [int(Draw(params, (), 7)(logits, step).item()) for step in range(40)]
    mx.random.seed(2)
    draw = Draw(params, (), 7)
    backwards = [int(draw(logits, step).item()) for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    other = [int(Draw(params, (), 8)(logits, step).item()) for step in range(40)]
    assert forwards != other


@each_implementation
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_every_bit_of_a_seed_of_32_bits_counts(seed: int) -> None:
    def draws(seed: int) -> list[int]:
        draw = Draw(DrawParams(), (), seed)
        return [int(draw(mx.zeros(9), 2**20 + step).item()) for step in range(20)]

    plain = draws(seed)
    assert set(plain) <= set(range(9))
    assert plain not in [draws(seed ^ 1 << bit) for bit in (0, 15, 16, 31)]


@each_implementation
def test_temperature_0_takes_the_likeliest_token_whatever_the_filters() -> None:
    logits = random_logits(300, 9)
    params = DrawParams(
        temperature=0.0, top_k=5, top_p=0.1, min_p=0.5, typical_p=0.1, xtc_probability=1.0, xtc_threshold=0.0
    )
    for seed in range(5):
        assert int(Draw(params, (), seed)(mx.array(logits), 0).item()) == logits.argmax()


def test_greedy_sampling_builds_only_an_argmax() -> None:
    logits = mx.array(random_logits(300, 9))
    greedy = Draw(DrawParams(temperature=0.0), (1, 2, 3), 0)
    with dispatch.using("stock"):
        assert operations(greedy(logits, 0)) == ["ArgReduce", "Squeeze"]


def operations(array: mx.array) -> list[str]:
    """The primitives still to be computed for `array`."""
    graph = io.StringIO()
    mx.export_to_dot(graph, array)
    return [line.split('label ="')[1].split('"')[0] for line in graph.getvalue().splitlines() if "rectangle" in line]


@each_implementation
def test_logit_bias_is_added_before_penalties() -> None:
    logits = random_logits(30, 2)
    expected = logits.astype(np.float64)
    for _ in range(30):  # ban the likeliest token each time, so that the order of all biased logits is compared
        bias = (
            (3, 2.5),
            (29, -7.0),
            (3, 1.0),
            *((int(token), -np.inf) for token in np.flatnonzero(expected == -np.inf)),
        )
        wanted = expected.copy()
        for token, amount in bias[:3]:
            wanted[token] += amount
        greedy = Draw(DrawParams(temperature=0.0, bias=bias), (), 0)
        assert int(greedy(mx.array(logits), 0).item()) == wanted.argmax()
        expected[wanted.argmax()] = -np.inf
    # the repetition penalty of one token halves its biased logit
    params = DrawParams(temperature=0.0, bias=((5, 40.0), (6, 30.0)), repetition_penalty=2.0)
    assert int(Draw(params, (5,), 0)(mx.array(logits), 0).item()) == 6


def test_default_parameters_leave_the_distribution_unchanged() -> None:
    logits = random_logits(100, 3)
    np.testing.assert_allclose(
        probabilities(logits, DrawParams()), reference.softmax(logits.astype(np.float64)), atol=1e-6
    )
    with_history, without = (Draw(DrawParams(), history, 5) for history in ((1, 2, 3) * 9, ()))
    for step in range(30):
        assert with_history(mx.array(logits), step).item() == without(mx.array(logits), step).item()
