"""Branches of conversations with their caches, against a model that computes every prompt anew."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from macllm import families
from macllm.families.config import Config
from macllm.generation import prefix as prefix_module
from macllm.generation.contract import EngineOptions
from macllm.generation.prefix import PrefixCache, common_prefix
from macllm.generation.request import Delta, Done, Event, Request, SamplingParams
from macllm.generation.stream import run
from macllm.nn.models import build
from macllm.nn.state import buffer, key_values
from macllm.train.initial import initialize
from tests.families.golden import golden
from tests.generation.generate_fakes import FakeTokenizer

PERFORMER = {
    "model_type": "macllm",
    "attention_kind": ["softmax", "performer"],
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_random_features": 24,
    "max_position_embeddings": 512,
}
CASES = [("llama", None), ("llama", 8), ("llama", 4), ("gemma2", None), ("gemma2", 8), ("performer", None)]


@lru_cache
def model(name: str) -> Any:
    if name != "performer":
        return golden(name).model()
    built = build(families.spec(Config(PERFORMER)))
    initialize(built, 0.2, seed=5)
    built.eval()
    return built


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rest is kept, buffers move often, and windows forget soon."""
    monkeypatch.setattr(prefix_module, "KEPT_TOKENS", 1)
    monkeypatch.setattr(prefix_module, "KEPT_SHARE", 1000)
    monkeypatch.setattr(buffer, "GROW", 8)
    monkeypatch.setattr(key_values, "SLACK", 2)


def answered(
    name: str, prompt: tuple[int, ...], kv_bits: int | None, prefix: PrefixCache | None, count: int = 5
) -> list[Event]:
    request = Request(prompt=prompt, max_tokens=count, sampling=SamplingParams(temperature=0.0), logprobs=0)
    options = EngineOptions(prefill_step=4, kv_bits=kv_bits)
    return list(run(model(name), FakeTokenizer(), request, options, prefix=prefix))


def tokens_of(events: list[Event]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, Delta) for token in event.tokens)


def logprobs_of(events: list[Event]) -> list[float]:
    return [each.logprob for event in events if isinstance(event, Delta) for each in event.logprobs]


def cached(events: list[Event]) -> int:
    done = events[-1]
    assert isinstance(done, Done)
    return done.usage.cached_tokens


def turns(count: int) -> list[tuple[str, random.Random]]:
    return [
        (random.Random(n).choice(["follow", "follow", "edit", "regenerate"]), random.Random(n)) for n in range(count)
    ]


@pytest.mark.parametrize(("name", "kv_bits"), CASES)
def test_follow_ups_edits_and_regenerations_of_any_branch_give_what_a_fresh_model_gives(
    name: str, kv_bits: int | None
) -> None:
    prefix, prompts, known, reused = PrefixCache(10**9), [(5, 17, 80, 3)], [()], 0
    for kind, rng in turns(24):
        before = rng.choice(known)
        match kind:
            case "follow":
                prompt = (*before, rng.randrange(3, 90), rng.randrange(3, 90))
            case "edit":
                prompt = (*before[: rng.randrange(len(before) + 1)], rng.randrange(3, 90), 7, 9)
            case _:
                prompt = rng.choice(prompts)
        events = answered(name, prompt, kv_bits, prefix)
        fresh = answered(name, prompt, kv_bits, None)
        assert tokens_of(events) == tokens_of(fresh)
        np.testing.assert_allclose(logprobs_of(events), logprobs_of(fresh), atol=2e-4)
        if name == "llama":
            assert cached(events) == min(max(common_prefix(each, prompt) for each in known), len(prompt) - 1)
        reused += cached(events)
        prompts.append(prompt)
        known.append((*prompt, *tokens_of(events)[:-1]))
    assert reused > 20


@pytest.mark.parametrize(("name", "kv_bits"), CASES)
def test_an_early_edit_leaves_the_long_branch_in_memory(name: str, kv_bits: int | None) -> None:
    prefix = PrefixCache(10**9)
    long = tuple(3 + n * 7 % 80 for n in range(40))
    answer = tokens_of(answered(name, long, kv_bits, prefix))
    answered(name, (*long[:9], 4, 4), kv_bits, prefix)
    events = answered(name, (*long, *answer, 11, 12), kv_bits, prefix)
    assert cached(events) == 44
    assert tokens_of(events) == tokens_of(answered(name, (*long, *answer, 11, 12), kv_bits, None))


@pytest.mark.parametrize("name", ["gemma2", "performer"])
def test_a_cache_that_forgets_is_kept_where_a_regeneration_begins(name: str) -> None:
    """The state before the last step of a long prompt, and that before the newest message."""
    prefix, prompt = PrefixCache(10**9), tuple(3 + n * 7 % 80 for n in range(22))
    answer = tokens_of(answered(name, prompt, None, prefix, 16))
    assert cached(answered(name, prompt, None, prefix, 16)) == 20
    second = (*prompt, *answer, 11, 12)
    fresh = tokens_of(answered(name, second, None, None, 16))
    for _ in range(3):
        again = answered(name, second, None, prefix, 16)
        assert cached(again) == 37
    assert tokens_of(again) == fresh


@pytest.mark.parametrize("name", ["llama", "gemma2", "performer"])
def test_a_small_capacity_costs_reuse_and_nothing_else(name: str) -> None:
    prompts = [tuple(range(n, n + 30)) for n in (3, 20, 40)]
    generous, tight = PrefixCache(10**9), PrefixCache(1)
    for prefix, hits in ((generous, [True, True, True]), (tight, [False, False, False])):
        for prompt in prompts:
            answered(name, prompt, None, prefix)
        events = [
            answered(name, (*prompt, *tokens_of(answered(name, prompt, None, None)), 9), None, prefix)
            for prompt in prompts
        ]
        assert [cached(each) > 0 for each in events] == hits
    assert len(tight.sequences) == 1
