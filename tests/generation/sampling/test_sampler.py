from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from macllm.generation.request import SamplingParams
from macllm.generation.sampling import sampler as module
from macllm.generation.sampling.sampler import Sampler, logprobs_of
from macllm.ops.draw_params import DrawParams
from macllm.ops.sampling import Draw

SIZES = [1, 2, 3, 17, 9001]
HISTORY = [5, 6, 7, 5, 6, 7, 8, 5, 6]
LOGITS = [0.1 * token + 2.5 * (token in (5, 6, 7)) for token in range(12)]  # so that sequences repeat
EACH = {
    "temperature": 0.0,
    "top_k": 2,
    "top_p": 0.2,
    "min_p": 0.8,
    "typical_p": 0.2,
    "xtc_probability": 1.0,
    "repetition_penalty": 5.0,
    "presence_penalty": 9.0,
    "frequency_penalty": 9.0,
    "dry_multiplier": 9.0,
    "logit_bias": ((3, 9.0),),
}
WITH = {  # that change something beside others
    "xtc_threshold": ({"xtc_probability": 1.0}, 0.02),
    "penalty_window": ({"presence_penalty": 9.0}, 1),
    "dry_base": ({"dry_multiplier": 0.3, "dry_allowed_length": 1}, 40.0),
    "dry_allowed_length": ({"dry_multiplier": 9.0}, 5),
    "dry_window": ({"dry_multiplier": 9.0}, 2),
    "dry_breakers": ({"dry_multiplier": 9.0}, (6,)),
}


def random_logits(size: int, seed: int, spread: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def drawn(params: SamplingParams, seed: int = 4) -> list[int]:
    sampler, logits = Sampler(params, seed, HISTORY, 12), mx.array(LOGITS)
    return [int(sampler(logits, step).item()) for step in range(40)]


@pytest.mark.parametrize(("name", "value"), EACH.items())
def test_a_parameter_reaches_the_draw(name: str, value: object) -> None:
    assert drawn(SamplingParams(**{name: value})) != drawn(SamplingParams())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WITH)
def test_a_parameter_of_another_reaches_the_draw(name: str) -> None:
    others, value = WITH[name]
    assert drawn(SamplingParams(**others, **{name: value})) != drawn(SamplingParams(**others))  # type: ignore[arg-type]


def test_every_parameter_of_a_draw_is_tried_and_has_the_same_default() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(SamplingParams)}
    ours = {"logit_bias" if name == "bias" else name: value for name, value in DrawParams()._asdict().items()}
    assert ours.items() <= defaults.items()
    assert ours.keys() == {*EACH, *WITH}


def test_the_seed_reaches_the_draw() -> None:
    assert drawn(SamplingParams(), 4) == drawn(SamplingParams(), 4) != drawn(SamplingParams(), 5)


def test_constraints_tell_the_draw_that_logits_may_be_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(module, "Draw", lambda *_, finite: told.append(finite))
    for params in (SamplingParams(top_k=3, suppress_tokens=(1,)), SamplingParams(min_new_tokens=2)):
        Sampler(params, 0, HISTORY, 12)
    assert told == [True, False]


def test_tokens_are_those_of_the_draw_where_nothing_else_is_asked() -> None:
    draw, logits = Draw(DrawParams(temperature=0.8), HISTORY, 4), mx.array(LOGITS)
    want = [int(draw(logits, step).item()) for step in range(40)]
    assert drawn(SamplingParams(temperature=0.8)) == want


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alternatives", [0, 1, 5, 20])
def test_logprobs_are_the_log_softmax_of_the_raw_logits(size: int, alternatives: int, dtype: mx.Dtype) -> None:
    logits = mx.array(random_logits(size, 4)).astype(dtype)
    exact = np.array(logits.astype(mx.float32)).astype(np.float64)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    token = size // 2
    chosen, *rivals = logprobs_of(logits, mx.array(token), alternatives)
    assert abs(chosen.item() - exact[token]) < 2e-5
    if not alternatives:
        assert rivals == []
        return
    tokens, values = (np.array(rival) for rival in rivals)
    assert len(set(tokens.tolist())) == min(alternatives, size)
    np.testing.assert_allclose(values, exact[tokens], atol=2e-5)
    np.testing.assert_allclose(np.sort(values), np.sort(exact)[-min(alternatives, size) :], atol=2e-5)
