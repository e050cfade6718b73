"""Completions of transformers with random weights, against full passes without a cache."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from macllm.errors import CheckpointError
from macllm.generation.contract import EngineOptions
from macllm.generation.engines.thread import ThreadEngine
from macllm.generation.prefix import PrefixCache
from macllm.generation.request import Delta, Done, Event, Prefill, Request, SamplingParams
from macllm.generation.stream import generate, run
from macllm.nn.models import build
from macllm.nn.spec import (
    AttentionSpec,
    Bidirectional,
    Causal,
    DecoderSpec,
    DynamicScaling,
    EmbeddingSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    HeadSpec,
    LayerSpec,
    LongScaling,
    MLPSpec,
    NormSpec,
    RoPESpec,
    Sliding,
    StackSpec,
)
from tests.generation.generate_fakes import FakeTokenizer

GREEDY = SamplingParams(temperature=0.0)
PROMPT = (5, 17, 200, 3, 3, 90, 41, 8, 77, 5, 17)
NORM = NormSpec(kind="rms", eps=1e-5)


def layer(mask: Any, rope: RoPESpec | None, cross: bool = False) -> LayerSpec:
    attention = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.5, mask=mask, rope=rope)
    return LayerSpec(
        mixer=attention,
        feed_forward=MLPSpec(hidden=40, activation="silu", gated=True),
        norm=NORM,
        cross_attention=dataclasses.replace(attention, mask=Bidirectional(), rope=None) if cross else None,
    )


def stack(*masks: Any, rope: RoPESpec | None = None, cross: bool = False) -> StackSpec:
    return StackSpec(layers=tuple(layer(mask, rope or RoPESpec(dims=8), cross) for mask in masks), final_norm=NORM)


EMBEDDING = EmbeddingSpec(vocab_size=256, dim=32)
HEAD = HeadSpec(tied=False)
SCALED = {
    "long": LongScaling(short=(1.0,) * 4, long=(1.0, 1.5, 2.0, 4.0), trained=20),
    "dynamic": DynamicScaling(2.0, 20),
}


@lru_cache
def model(kind: str) -> Any:
    spec: Any = DecoderSpec(embedding=EMBEDDING, decoder=stack(Causal(), Causal()), head=HEAD, context_length=200)
    if kind == "window":
        spec = dataclasses.replace(spec, decoder=stack(Sliding(4), Causal(), Sliding(5)))
    elif kind in SCALED:
        spec = dataclasses.replace(spec, decoder=stack(Causal(), rope=RoPESpec(dims=8, scaling=SCALED[kind])))
    elif kind == "encoder":
        spec = EncoderSpec(embedding=EMBEDDING, encoder=stack(Bidirectional()))
    elif kind == "text to text":
        spec = EncoderDecoderSpec(
            source=EMBEDDING,
            target=EMBEDDING,
            encoder=stack(Bidirectional()),
            decoder=stack(Causal(), Causal(), cross=True),
            head=HEAD,
        )
    mx.random.seed(4)
    built = build(spec)
    built.update(
        tree_map(
            lambda p: p if p.ndim < 2 else mx.random.normal(p.shape) * 1.5 / p.shape[-1] ** 0.5, built.parameters()
        )
    )
    mx.eval(built.parameters())
    built.info = dataclasses.replace(built.info, decoder_start=0)
    return built


def plain_loop(lm: Any, prompt: tuple[int, ...], count: int, **source: Any) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(mx.argmax(lm(mx.array([tokens]), **source)[0, -1]).item()))
    return tokens[len(prompt) :]


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


@pytest.mark.parametrize("kind", ["plain", "window"])
@pytest.mark.parametrize("step", [1, 3, 512])
def test_greedy_tokens_equal_those_of_full_passes(kind: str, step: int) -> None:
    request = Request(prompt=PROMPT, max_tokens=25, sampling=GREEDY)
    events = list(run(model(kind), FakeTokenizer(), request, EngineOptions(prefill_step=step)))
    expected = plain_loop(model(kind), PROMPT, 25)
    assert len(set(expected)) > 5
    assert tokens_of(events) == expected


@pytest.mark.parametrize(
    ("kind", "reused"), [("plain", [0, 9, 9, 9]), ("long", [0, 9, 0, 9]), ("dynamic", [0, 9, 0, 0])]
)
def test_the_cache_is_reused_unless_the_new_length_changes_its_rotations(kind: str, reused: list[int]) -> None:
    """Requests of 19, 20, 21 and 22 positions to a model that was trained on 20."""
    prefix, cached = PrefixCache(), []
    for reach in (19, 20, 21, 22):
        request = Request(prompt=PROMPT[:10], max_tokens=reach - 10, sampling=GREEDY)
        events = list(run(model(kind), FakeTokenizer(), request, prefix=prefix))
        cached.append(events[-1].usage.cached_tokens)
        assert tokens_of(events) == tokens_of(list(run(model(kind), FakeTokenizer(), request)))
    assert cached == reused


@pytest.mark.parametrize("kind", ["plain", "window", "long", "dynamic"])
@pytest.mark.parametrize("kv_bits", [None, 8])
def test_turns_with_a_reused_cache_equal_turns_without(kind: str, kv_bits: int | None) -> None:
    """Prompts grow, repeat and are edited at both ends, beyond windows and trained lengths."""
    prefix, prompt, reused = PrefixCache(), PROMPT, []
    options = EngineOptions(prefill_step=4, kv_bits=kv_bits)
    for turn in range(8):
        request = Request(prompt=prompt, max_tokens=7, sampling=GREEDY)
        fresh = list(run(model(kind), FakeTokenizer(), request, options))
        events = list(run(model(kind), FakeTokenizer(), request, options, prefix=prefix))
        assert tokens_of(events) == tokens_of(fresh)
        reused.append(events[-1].usage.cached_tokens)
        answer = tokens_of(events)
        if turn == 3:
            prompt = (*prompt[:-2], 9, 9)
        elif turn == 5:
            prompt = (1, *prompt[1:])
        else:
            prompt = (*prompt, *answer, 11, 12)
    if kind in ("plain", "window"):
        assert reused[1] == len(PROMPT) + 6
        assert reused[6] == 0
    if kind == "long":  # the rotations change once, beyond the trained length
        assert reused[2] > 0
    if kind == "dynamic":  # beyond it, every length has its own rotations
        assert reused[2] == 0


@pytest.mark.parametrize("kind", ["plain", "window"])
@pytest.mark.parametrize("position", [0, 1, 3, 4, 7, 11])
def test_a_cancelled_turn_can_be_continued(kind: str, position: int) -> None:
    prefix, asked = PrefixCache(), 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > position

    request, options = Request(prompt=PROMPT, max_tokens=20, sampling=GREEDY), EngineOptions(prefill_step=4)
    shown = tokens_of(list(run(model(kind), FakeTokenizer(), request, options, prefix=prefix, cancelled=cancelled)))
    assert list(prefix.tokens)[: len(PROMPT)] == list(PROMPT)[: len(prefix.tokens)]
    following = (*PROMPT, *shown, 13)
    request = dataclasses.replace(request, prompt=following)
    events = list(run(model(kind), FakeTokenizer(), request, options, prefix=prefix))
    assert tokens_of(events) == plain_loop(model(kind), following, 20)
    prefilled = max(0, position - 1)  # chunks of 4; `cancelled` is called once before any work
    assert events[-1].usage.cached_tokens == min(
        len(prefix.tokens), 4 * prefilled if prefilled < 3 else len(PROMPT) + len(shown)
    )


@pytest.mark.parametrize("forced", [None, 42])
def test_an_encoder_decoder_gives_the_tokens_of_full_passes_over_its_source(forced: int | None) -> None:
    lm = model("text to text")
    lm.info = dataclasses.replace(lm.info, generation_config={"forced_bos_token_id": forced})
    out = generate(lm, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=15, sampling=GREEDY), prefill_step=1)
    start = (0,) if forced is None else (0, forced)
    assert list(out.tokens) == plain_loop(lm, start, 15, source=mx.array([PROMPT]))
    assert out.usage.prompt_tokens == len(PROMPT)
    events = list(run(lm, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=1), EngineOptions(prefill_step=1)))
    assert [(event.done, event.total) for event in events if isinstance(event, Prefill)] == [(0, 11), (11, 11)]


def test_generating_with_an_encoder_is_an_error_that_names_embed() -> None:
    from macllm.errors import UsageError

    with pytest.raises(UsageError, match="encoder") as error:
        generate(model("encoder"), FakeTokenizer(), Request(prompt=PROMPT))
    assert "embed" in error.value.remedy
    with pytest.raises(UsageError, match="encoder"):  # not an error about the chat template that it lacks
        generate(model("encoder"), FakeTokenizer(), Request(messages=({"role": "user", "content": "Hi"},)))


def test_a_thread_engine_gives_the_tokens_of_a_model_on_this_thread() -> None:
    engine = ThreadEngine(lambda: (model.__wrapped__("window"), FakeTokenizer()))
    events = list(engine.submit(Request(prompt=PROMPT, max_tokens=12, sampling=GREEDY)))
    engine.close()
    assert isinstance(events[-1], Done)
    assert tokens_of(events) == plain_loop(model("window"), PROMPT, 12)


class Altered:
    """A model whose logits are altered from one call of its head on."""

    def __init__(self, number: int, change: Any) -> None:
        self._model, self._number, self._change, self._calls = model("plain"), number, change, 0
        self.info = dataclasses.replace(self._model.info, context_length=None)
        self.make_cache, self.hidden = self._model.make_cache, self._model.hidden

    def logits(self, hidden: mx.array) -> mx.array:
        """The model's logits, altered after `number` calls."""
        self._calls += 1
        out = self._model.logits(hidden)
        return out if self._calls <= self._number else self._change(out)


BROKEN = {
    "one NaN": lambda out: mx.where(mx.arange(256) == 77, mx.nan, out),
    "all NaN": lambda out: out * mx.nan,
    "an infinite one": lambda out: mx.where(mx.arange(256) == 77, mx.inf, out),
    "all minus infinity": lambda out: out * 0 - mx.inf,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=0.8, top_p=0.9, seed=1)])
def test_nan_and_infinite_logits_end_a_completion_before_any_text(name: str, sampling: SamplingParams) -> None:
    prefix, seen = PrefixCache(), []
    request = Request(prompt=PROMPT, sampling=sampling)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        seen.extend(run(Altered(0, BROKEN[name]), FakeTokenizer(), request, prefix=prefix))
    assert not any(isinstance(event, Delta) for event in seen)
    assert prefix.tokens == ()


def test_logits_that_become_nan_end_a_completion_within_256_tokens() -> None:
    request = Request(prompt=PROMPT, max_tokens=300, sampling=GREEDY)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        list(run(Altered(30, BROKEN["all NaN"]), FakeTokenizer(), request))


def test_logits_of_minus_infinity_are_accepted() -> None:
    model_with_a_banned_token = Altered(0, lambda out: mx.where(mx.arange(256) == 77, -mx.inf, out))
    events = run(model_with_a_banned_token, FakeTokenizer(), Request(prompt=PROMPT, max_tokens=5, sampling=GREEDY))
    assert len(tokens_of(list(events))) == 5
