"""`lora.disabled`, the base as reference policy, against the model without an adapter, bit for bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from macllm.nn import lora, quantize
from tests.train.test_adapter import LLAMA, TOKENS, make, randomize
from tests.train.test_adapter_experts import MIXTRAL


def equal(a: mx.array, b: mx.array) -> bool:
    return bool(mx.array_equal(a, b))


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("config", "bits"), [(LLAMA, None), (LLAMA, 4), (MIXTRAL, None)], ids=str)
def test_a_disabled_adapter_leaves_the_base_bit_for_bit(config: Any, bits: int | None, use_dora: bool) -> None:
    model = make(config)
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    before = model(TOKENS)
    keys = ("*.mixer.*",) if use_dora else ()
    lora.apply(model, rank=4, alpha=8.0, keys=keys, use_dora=use_dora)
    randomize(model)
    adapted = model(TOKENS)
    with lora.disabled(model):
        assert equal(model(TOKENS), before)
    assert equal(model(TOKENS), adapted)
    assert not equal(adapted, before)


def test_disabled_contexts_nest_and_end_at_an_error() -> None:
    model = make()
    before = model(TOKENS)
    lora.apply(model, rank=4, alpha=8.0)
    randomize(model)
    adapted = model(TOKENS)
    outer, inner = lora.disabled(model), lora.disabled(model)
    with outer:
        for context in (outer, inner, lora.disabled(model)):
            with context:
                assert equal(model(TOKENS), before)
            assert equal(model(TOKENS), before)
    assert equal(model(TOKENS), adapted)
    with pytest.raises(ZeroDivisionError), outer, inner:
        assert 1 / 0
    assert equal(model(TOKENS), adapted)


def test_gradients_within_it_are_those_of_the_unadapted_model_and_the_adapter_stays_trainable() -> None:
    model = make()
    x = mx.random.normal((1, 5, 64))
    layer = model.decoder.layers[0]

    def slope(x: mx.array) -> mx.array:
        return mx.grad(lambda x: (layer.mixer.q_proj(x) ** 2).sum())(x)

    before = slope(x)
    lora.apply(model, rank=4, alpha=8.0)
    randomize(model)
    trained = [name for name, _ in tree_flatten(model.trainable_parameters())]
    with lora.disabled(model):
        assert equal(slope(x), before)

    def loss(model: nn.Module) -> mx.array:
        with lora.disabled(model):
            reference = mx.stop_gradient(model(TOKENS))
        return ((model(TOKENS) - reference) ** 2).sum()

    _, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    assert sorted(flat) == sorted(trained)
    assert all(float(mx.abs(gradient).max()) > 0 for gradient in flat.values())
    assert [name for name, _ in tree_flatten(model.trainable_parameters())] == trained
