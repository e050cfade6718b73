"""Completions of an adapted model without its adapter, against the model without one."""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import adapter
from macllm.adapter.attached import checked, exchange
from macllm.generation.engines.thread import ThreadEngine
from macllm.generation.prefix import PrefixCache
from macllm.generation.request import Delta, Event, Prefill, Request, SamplingParams
from macllm.generation.stream import run
from macllm.nn import lora, quantize
from tests.families.golden import golden
from tests.generation.generate_fakes import FakeTokenizer

PROMPT = (5, 17, 80, 3, 3, 60, 41, 8, 77, 5, 17)
FORMS = ["dense", "packed"]


def base(form: str) -> Any:
    model = golden("llama").model()
    if form == "packed":
        quantize.apply(model, bits=8, group_size=32)
    return model


def adapted(form: str) -> Any:
    model = base(form)
    lora.apply(model, rank=4, alpha=16.0, seed=1)
    for n, layer in enumerate(lora.adapters(model).values()):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(n))
    return model


def request(prompt: tuple[int, ...] = PROMPT, adapter: bool = True) -> Request:
    return Request(prompt=prompt, max_tokens=12, sampling=SamplingParams(temperature=0.0), adapter=adapter)


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def decoded(model: Any, count: int = 6) -> np.ndarray:
    """Logits of a prompt and of steps after it, (L, V)."""
    cache = model.make_cache()
    parts = [model(mx.array([PROMPT]), cache=cache)]
    parts += [model(mx.array([[token]]), cache=cache) for token in range(count)]
    return np.array(mx.concatenate(parts, axis=1)[0].astype(mx.float32))


@pytest.mark.parametrize("form", FORMS)
def test_a_disabled_adapter_leaves_exactly_the_base_model(form: str) -> None:
    model = adapted(form)
    before = dict(tree_flatten(model.parameters()))
    with_it, disabled = decoded(model), lora.Disabled(model)
    for _ in range(2):  # a plan of the steps that was made for one state is not taken for the other
        with disabled:
            np.testing.assert_array_equal(decoded(model), decoded(base(form)))
        np.testing.assert_array_equal(decoded(model), with_it)
    assert np.abs(with_it - decoded(base(form))).max() > 1e-2
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_an_error_inside_brings_the_adapter_back() -> None:
    model = adapted("dense")
    layers = lora.adapters(model)

    def fail() -> None:
        with lora.Disabled(model):
            assert not lora.adapters(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert lora.adapters(model).keys() == layers.keys()


@pytest.mark.parametrize("form", FORMS)
def test_completions_with_and_without_the_adapter_do_not_mix(form: str) -> None:
    model, prefix = adapted(form), PrefixCache()
    expected = {
        True: tokens_of(list(run(adapted(form), FakeTokenizer(), request()))),
        False: tokens_of(list(run(base(form), FakeTokenizer(), request()))),
    }
    assert expected[True] != expected[False]
    for n, state in enumerate((True, False, False, True, False)):
        events = list(run(model, FakeTokenizer(), request(adapter=state), prefix=prefix))
        assert tokens_of(events) == expected[state], n


def test_two_streams_at_once_keep_their_states_and_caches() -> None:
    model, prefix = adapted("dense"), PrefixCache(2**30)
    streams = {state: run(model, FakeTokenizer(), request(adapter=state), prefix=prefix) for state in (True, False)}
    events: dict[bool, list[Event]] = {True: [], False: []}
    for _ in range(6):
        for state in streams:
            events[state].append(next(streams[state]))
    for state in (False, True):
        events[state] += streams[state]
    for state, like in ((False, base("dense")), (True, adapted("dense"))):
        want = tokens_of(list(run(like, FakeTokenizer(), request())))
        assert tokens_of(events[state]) == want
        again = list(run(model, FakeTokenizer(), request(adapter=state), prefix=prefix))
        assert tokens_of(again) == want


def test_an_adapter_that_is_exchanged_during_a_completion_of_the_base_stays() -> None:
    model, updates = base("dense"), dict[str, dict[str, lora.Update]]()
    for seed, name in enumerate("ab"):
        trained = adapted("dense")
        for n, layer in enumerate(lora.adapters(trained).values()):
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(100 * seed + n))
        updates[name] = {each: layer.update_weights for each, layer in lora.adapters(trained).items()}
        exchange(model, {name: 1.0}, lambda name, _: checked(model, updates[name]), sys.maxsize)
    wanted, prefix = decoded(model), PrefixCache()
    adapter.activate(model, "a")
    list(run(model, FakeTokenizer(), request(), prefix=prefix))
    events = run(model, FakeTokenizer(), request(adapter=False))
    found = [next(events) for _ in range(3)]
    adapter.activate(model, "b")
    found += events
    assert tokens_of(found) == tokens_of(list(run(base("dense"), FakeTokenizer(), request())))
    np.testing.assert_array_equal(decoded(model), wanted)
    reused = list(run(model, FakeTokenizer(), request(), prefix=prefix))
    assert isinstance(reused[0], Prefill)
    assert reused[0].done == 0, "the prefix was read by the other adapter"


def test_a_stream_that_is_closed_leaves_the_adapter_in_place() -> None:
    model = adapted("dense")
    names = lora.adapters(model).keys()
    events = run(model, FakeTokenizer(), request(adapter=False))
    for _ in range(3):
        next(events)
        assert lora.adapters(model).keys() == names
    events.close()
    assert lora.adapters(model).keys() == names


def test_an_engine_names_its_adapter_and_leaves_it_out_of_a_request() -> None:
    engine = ThreadEngine(lambda: (adapted("dense"), FakeTokenizer()), adapter="runs/notes")
    assert engine.info.adapter == "runs/notes"
    found = tokens_of(list(engine.submit(request(adapter=False))))
    engine.close()
    assert found == tokens_of(list(run(base("dense"), FakeTokenizer(), request())))
