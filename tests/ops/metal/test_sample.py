"""Draws against the definition in float64.

Slow: all filters over vocabularies of all sizes, and most that reach beyond all candidates.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.metal.sampling import sample as plan
from macllm.ops.metal.sampling.sample import Filters
from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import simulated
from tests.simulator.run import ONCE, RunOptions


def kept(logits: np.ndarray, f: Filters) -> np.ndarray:
    """Tokens that may be drawn, likeliest first, from the definition in float64."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp((logits[order] - logits.max()) / f.temperature)
    if f.top_k:
        order, weights = order[: f.top_k], weights[: f.top_k]
    before = np.cumsum(weights) - weights
    may = (before < f.top_p * weights.sum()) & (weights >= f.min_p)
    may[0] = True
    return order[may & (weights > 0)]


def drawn(
    logits: np.ndarray, uniform: np.ndarray, f: Filters, dtype: mx.Dtype = mx.float32, how: RunOptions | None = None
) -> list[np.ndarray]:
    with simulated(how) as log:
        out = plan.draw(mx.array(logits).astype(dtype), mx.array(uniform, mx.float32), f)
    assert log.faults == []
    return [np.array(x) for x in out]


def likely(vocabulary: int, rows: int, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).normal(size=(rows, vocabulary)).astype(np.float32)


FILTERS = [
    Filters(1.0, top_k=1),
    Filters(0.7, top_k=20),
    Filters(1.3, top_p=0.6),
    Filters(0.5, min_p=0.1),
    Filters(0.9, top_k=40, top_p=0.8, min_p=0.02),
]


@pytest.mark.parametrize(("filters", "vocabulary"), sweep(FILTERS, [700, 5000, 77, 33, 1]))
def test_each_uniform_number_draws_the_token_at_its_mass(filters: Filters, vocabulary: int) -> None:
    rows = 3
    logits = likely(vocabulary, rows)
    uniform = np.linspace(0, 0.999, rows).astype(np.float32)
    tokens, logprobs = drawn(logits, uniform, filters)
    wide = logits.astype(np.float64)
    for row, token in enumerate(tokens):
        may = kept(wide[row], filters)
        weights = np.exp((wide[row, may] - wide[row].max()) / filters.temperature)
        reached = np.cumsum(weights) / weights.sum()
        place = int(np.flatnonzero(may == token)[0])
        assert reached[place] >= uniform[row] - 1e-5
        assert reached[place] - weights[place] / weights.sum() <= uniform[row] + 1e-5
        total = wide[row].max() + np.log(np.exp(wide[row] - wide[row].max()).sum())
        assert logprobs[row] == pytest.approx(wide[row, token] - total, abs=1e-5)


STEPS = -0.001 * np.arange(100, dtype=np.float32)
MASSES = [
    pytest.param(np.concatenate([STEPS, np.full(200, -0.5, np.float32)]), Filters(1.0, 40, 0.5), id="of the top_k"),
    pytest.param(np.concatenate([STEPS, np.full(200, -0.5, np.float32)]), Filters(1.0, 0, 0.25), id="of few logits"),
    pytest.param(
        np.concatenate([STEPS, np.full(2460, -3.0, np.float32)]), Filters(1.0, 0, 0.3), id="of more than candidates"
    ),
    pytest.param(
        np.concatenate([STEPS, np.full(2460, -3.0, np.float32)]), Filters(1.7, 90, 0.3, 0.01), id="of all filters"
    ),
]


@pytest.mark.parametrize(("logits", "filters"), MASSES)
def test_top_p_is_a_share_of_the_mass_after_top_k(logits: np.ndarray, filters: Filters) -> None:
    logits = np.random.default_rng(3).permutation(logits)  # the likeliest are in many blocks
    (token,), _ = drawn(logits[None], np.array([0.9999], np.float32), filters, how=ONCE)
    assert token == kept(logits.astype(np.float64), filters)[-1]


@pytest.mark.parametrize("vocabulary", [3000, 70, 5])
def test_without_filters_any_token_can_be_drawn(vocabulary: int) -> None:
    rows, heat = 3, 1.7
    logits = likely(vocabulary, rows)
    uniform = np.linspace(0, 0.999, rows).astype(np.float32)
    tokens, _ = drawn(logits, uniform, Filters(heat))
    wide = logits.astype(np.float64)
    weights = np.exp((wide - wide.max(-1, keepdims=True)) / heat)
    reached = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    for row, token in enumerate(tokens):
        assert reached[row, token] >= uniform[row] - 1e-5
        assert (reached[row, token - 1] if token else 0) <= uniform[row] + 1e-5


@pytest.mark.parametrize("filters", [FILTERS[0], Filters(1.0)], ids=["filters", "none"])
def test_a_vocabulary_of_one_token_in_constant_memory_is_drawn(filters: Filters) -> None:
    tokens, logprobs = drawn(likely(1, 1), np.zeros(1, np.float32), filters)
    assert (tokens.tolist(), logprobs.tolist()) == ([0], [0.0])


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_ties_of_16_bit_logits_are_ordered_by_index(dtype: mx.Dtype) -> None:
    logits = np.array(mx.array(likely(600, 4)).astype(dtype).astype(mx.float32))
    filters = Filters(1.0, top_k=5)
    uniform = np.array([0.0, 0.3, 0.6, 0.99], np.float32)
    tokens = drawn(logits, uniform, filters, dtype)[0]
    for row, token in enumerate(tokens):
        assert token in kept(logits[row].astype(np.float64), filters)


def test_masked_tokens_are_never_drawn() -> None:
    logits = likely(500, 6)
    logits[:, 7:] = -np.inf
    logits[3, 2] = np.nan
    for filters in (Filters(1.0, top_k=50), Filters(1.0), Filters(2.0, top_p=0.99)):
        tokens, _ = drawn(logits, np.linspace(0, 0.9999, 6).astype(np.float32), filters)
        assert (tokens < 7).all()
        assert tokens[3] != 2


FLAT = -0.001 * np.arange(64 * 40, dtype=np.float32)
BEYOND = [
    pytest.param(FLAT, Filters(1.0, top_p=0.99), id="the mass", marks=pytest.mark.slow),
    pytest.param(FLAT, Filters(0.9, top_k=2300), id="the count", marks=pytest.mark.slow),
    pytest.param(FLAT[::-1].copy(), Filters(1.2, top_k=2400, top_p=0.9, min_p=0.2), id="all filters"),
    pytest.param(FLAT, Filters(1.0, min_p=0.1), id="the likelihood", marks=pytest.mark.slow),
    pytest.param(0 * FLAT, Filters(1.0, top_k=2100), id="equals, of which the first count", marks=pytest.mark.slow),
    pytest.param(np.where(FLAT < -1, -3.0, 0.0), Filters(1.0, top_p=0.97), id="the mass ends among equals"),
]


@pytest.mark.parametrize(("logits", "filters"), BEYOND)
def test_filters_that_keep_more_than_the_candidates_read_all_logits(logits: np.ndarray, filters: Filters) -> None:
    rows = 3
    uniform = np.linspace(0, 0.999, rows).astype(np.float32)
    tokens, logprobs = drawn(np.tile(logits.astype(np.float32), (rows, 1)), uniform, filters)
    may = np.sort(kept(logits.astype(np.float64), filters))  # by index
    assert len(may) > 2048 // 2
    weights = np.exp((logits[may].astype(np.float64) - logits.max()) / filters.temperature)
    reached = np.cumsum(weights) / weights.sum()
    total = np.log(np.exp(logits.astype(np.float64)).sum())
    for row, token in enumerate(tokens):
        place = int(np.flatnonzero(may == token)[0])
        assert reached[place] >= uniform[row] - 1e-5
        assert reached[place] - weights[place] / weights.sum() <= uniform[row] + 1e-5
        assert logprobs[row] == pytest.approx(logits[token] - total, abs=1e-5)
    assert tokens[0] == may[0]
    assert tokens[-1] > may[-1] - 40  # where 0.999 of the mass ends


def test_few_candidates_suffice_if_few_tokens_are_kept() -> None:
    logits = np.tile(FLAT, (2, 1))
    with simulated() as log:
        plan.draw(mx.array(logits), mx.array([0.5, 0.9]), Filters(1.0, top_k=30))
    assert log.faults == []
    assert log.dispatches[1][1].traffic["logits"].lines == 2  # of the chosen
