"""The fused decode step: layers it supports, equality with the composed ops, fallbacks."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from macllm import families
from macllm.families.config import Config
from macllm.nn import lora, quantize
from macllm.nn.mask import Masks, dense_mask, first_visible_slot
from macllm.nn.models import build
from macllm.nn.position import Span
from macllm.nn.spec import Causal, Chunked, MaskSpec, Sliding
from macllm.nn.state import buffer, key_values
from macllm.ops import cpu, decode_step
from macllm.ops.dispatch import using
from macllm.ops.quantized import Activations, using_activations
from tests.families.golden import golden, shared_model
from tests.families.oracles import CASES, Case

DECODERS = [case for case in CASES if case.kind == "decoder" and "both-ways" not in case.name]
decoder = pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
pytestmark = pytest.mark.skipif(not cpu.available(), reason="there are no kernels here")

LENGTH = 19
PADDING = [0, 4]


def decoded(model, tokens: mx.array, cache) -> np.ndarray:
    return np.concatenate([np.array(model(tokens[:, t : t + 1], cache=cache)) for t in range(tokens.shape[1])], axis=1)


def drawn(case: Case) -> mx.array:
    return mx.array(np.random.default_rng(3).integers(3, 90, (2, LENGTH)))


def attended(model) -> int:
    """Number of layers whose attention a fused step can do: none with a bias on the scores."""
    return len(model.spec.decoder.layers) if model.spec.decoder.relative_bias is None else 0


class FusedCounts:
    """Counts of fused branches by kind, and of native ops."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attention = self.mlp = self.ops = 0
        run = decode_step.run

        def counting(x: mx.array, branches: decode_step.Branches) -> mx.array:
            attention = len(branches.slots)
            self.attention, self.mlp = self.attention + attention, self.mlp + len(branches.plans) - attention
            self.ops += 1
            return run(x, branches)

        monkeypatch.setattr(decode_step, "run", counting)


@decoder
def test_every_decoders_fused_steps_equal_the_composed_ops(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer, "GROW", 4)
    monkeypatch.setattr(key_values, "SLACK", 3)
    model, tokens, results = shared_model(case.name), drawn(case), []
    fused = FusedCounts(monkeypatch)
    for choice in ("stock", "native"):
        cache = model.make_cache(max_context=LENGTH, left_padding=PADDING)
        with using(choice):  # type: ignore[arg-type]
            results.append(decoded(model, tokens, cache))
    np.testing.assert_allclose(results[1], results[0], atol=2e-5 * np.abs(results[0]).max())
    layers = model.spec.decoder.layers
    assert fused.attention == (LENGTH - 1) * attended(model)  # the first token fills an empty cache, unfused
    dense = [layer for layer in layers if getattr(layer.feed_forward, "activation", None) in decode_step.ACTIVATIONS]
    assert fused.mlp == (LENGTH - 1) * len(dense)
    if attended(model) == len(dense) == len(layers):
        assert fused.ops == LENGTH - 1


def test_adapted_layers_fall_back_to_the_composed_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, model = FusedCounts(monkeypatch), golden("llama").model()
    lora.apply(model, rank=2, alpha=4, keys=["up_proj", "k_proj"])
    decoded(model, drawn(CASES[0])[:, :3], model.make_cache())
    assert fused.ops == 0
    lora.remove(model)
    decoded(model, drawn(CASES[0])[:, :3], model.make_cache())
    assert fused.attention > 0


@pytest.mark.parametrize(
    ("case", "bits"),
    [(case, bits) for case in DECODERS for bits in ((4, 8) if case.main else (4,))],
    ids=lambda value: getattr(value, "name", value),
)
def test_fused_steps_fill_quantized_caches_as_the_composed_ops_do(
    case: Case, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer, "GROW", 4)
    monkeypatch.setattr(key_values, "SLACK", 3)
    model, tokens, results = shared_model(case.name), drawn(case), []
    fused = FusedCounts(monkeypatch)
    for composed in (True, False):
        with monkeypatch.context() as patch:
            if composed:
                patch.setattr(decode_step, "supports", lambda *_: False)
            cache = model.make_cache(max_context=LENGTH, left_padding=PADDING, kv_bits=bits)
            results.append(decoded(model, tokens, cache))
    assert fused.attention == (LENGTH - 1) * attended(model)
    apart, largest = np.abs(results[1] - results[0]), np.abs(results[0]).max()
    assert np.median(apart) < 2e-5 * largest
    assert apart.max() < {4: 0.1, 8: 0.01}[bits] * largest  # a value between two codes may round to either


def divisible(family: str):
    """A model whose matrices are whole groups of 32, with random biases where the family has some."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": family, "num_hidden_layers": 3, "vocab_size": 96, "rms_norm_eps": 1e-5, **sizes}
    mx.random.seed(0)
    model = build(families.spec(Config({**config, "max_position_embeddings": 64})))
    for layer in model.decoder.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            if "bias" in layer.mixer[name]:
                layer.mixer[name].bias = mx.random.normal(layer.mixer[name].bias.shape)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("bits", [4, 8, 6])
@pytest.mark.parametrize("form", ["int8", "float"])
def test_fused_steps_of_quantized_layers_equal_the_composed_ops(
    family: str, bits: int, form: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, results = divisible(family), drawn(CASES[0]), []
    dense = decoded(model, tokens, model.make_cache(left_padding=PADDING))  # plans are made, and must be rebuilt
    quantize.apply(model, bits=bits, group_size=32)
    fused = FusedCounts(monkeypatch)
    with using_activations(form):
        for composed in (True, False):
            with monkeypatch.context() as patch:
                if composed:
                    patch.setattr(decode_step, "supports", lambda *_: False)
                results.append(decoded(model, tokens, model.make_cache(left_padding=PADDING)))
    apart, largest = np.abs(results[1] - results[0]), np.abs(results[0]).max()
    assert np.quantile(apart, 0.9) < 2e-5 * largest
    assert apart.max() < (2e-5 if form == "float" else 1e-2) * largest  # a value between two codes may round to either
    assert fused.attention == fused.mlp == (LENGTH - 1) * 3
    error = np.abs(results[1] - dense).max() / np.abs(dense).max()
    assert 1e-3 < error < {4: 0.5, 6: 0.1, 8: 0.03}[bits]


def test_an_unsupported_mode_falls_back_to_the_composed_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, model = FusedCounts(monkeypatch), divisible("llama")
    quantize.apply(model, mode="mxfp4")
    decoded(model, drawn(CASES[0])[:, :2], model.make_cache())
    assert fused.ops == 0


def test_replaced_weights_take_effect_in_the_next_step() -> None:
    model, tokens = golden("llama").model(), drawn(CASES[0])
    decoded(model, tokens, model.make_cache())
    for layer in model.decoder.layers:
        layer.feed_forward.up_proj.weight = layer.feed_forward.up_proj.weight * 2
        layer.mixer_norm.pre.weight = layer.mixer_norm.pre.weight + 1
    got = decoded(model, tokens, model.make_cache())
    np.testing.assert_allclose(got, np.array(model(tokens)), atol=2e-5 * np.abs(got).max())


def test_a_step_changes_no_array_that_was_read_from_the_cache_before() -> None:
    model, tokens = golden("llama").model(), drawn(CASES[0])
    cache = model.make_cache()
    decoded(model, tokens[:, :6], cache)
    fork = cache.fork()
    state, held = cache.state, [part for layer in cache.layers for part in layer.filled()]
    mx.eval(state, held)
    corner = state[0][:, :, 3:6]
    before = [np.array(array) for array in (*state, *held, corner)]
    cache.cut(3)
    other = decoded(model, tokens[:, 10:16], cache)
    for array, was in zip((*state, *held, corner), before, strict=True):
        np.testing.assert_array_equal(np.array(array), was)
    want = decoded(model, tokens[:, 6:9], fork)
    full = np.array(model(tokens[:, :9]))
    np.testing.assert_allclose(want, full[:, 6:], atol=2e-5 * np.abs(full).max())
    again = np.array(model(mx.concatenate([tokens[:, :3], tokens[:, 10:16]], axis=1)))
    np.testing.assert_allclose(other, again[:, 3:], atol=2e-5 * np.abs(again).max())


def test_queued_steps_run_in_order_without_being_read() -> None:
    model, tokens = golden("llama").model(), drawn(CASES[0])
    cache = model.make_cache()
    queued = [model(tokens[:, t : t + 1], cache=cache) for t in range(LENGTH)]
    for logits in queued[::4]:
        mx.async_eval(logits)
    got = np.array(mx.concatenate(queued, axis=1))
    np.testing.assert_allclose(got, np.array(model(tokens)), atol=2e-5 * np.abs(got).max())


@pytest.mark.parametrize("bits", [None, 8])
def test_a_cache_read_before_its_step_is_evaluated_has_the_new_row(bits: int | None) -> None:
    model, tokens, held = golden("llama").model(), drawn(CASES[0]), []
    for waits in (True, False):
        cache = model.make_cache(kv_bits=bits)
        decoded(model, tokens[:, :4], cache)
        logits = model(tokens[:, 4:5], cache=cache)
        if waits:
            mx.eval(logits)
        del logits  # the last reference
        held.append([np.array(part) for layer in cache.layers for part in layer.filled()])
    for late, early in zip(*held, strict=True):
        assert late.shape[2] == 5
        np.testing.assert_array_equal(early, late)


def test_a_step_has_the_gradient_of_the_composed_ops() -> None:
    model, tokens = golden("llama").model(), drawn(CASES[0])

    def loss(weight: mx.array) -> mx.array:
        model.decoder.layers[0].feed_forward.up_proj.weight = weight
        cache = model.make_cache()
        model(tokens[:, :5], cache=cache)
        return mx.square(model(tokens[:, 5:6], cache=cache)).sum()

    weight = model.decoder.layers[0].feed_forward.up_proj.weight
    slopes = []
    for choice in ("stock", "native"):
        with using(choice):  # type: ignore[arg-type]
            slopes.append(np.array(mx.grad(loss)(weight)))
    assert np.abs(slopes[0]).max() > 0
    np.testing.assert_allclose(slopes[1], slopes[0], atol=1e-4 * np.abs(slopes[0]).max())


@pytest.mark.parametrize("spec", [Causal(), Sliding(1), Sliding(5), Chunked(1), Chunked(6)])
@pytest.mark.parametrize("padding", [0, 1, 7])
def test_first_visible_slot_equals_the_dense_masks_first(spec: MaskSpec, padding: int) -> None:
    for slot in range(20):
        mask = dense_mask(spec, Span(slot, 1, (padding,)), 0)
        assert isinstance(mask, mx.array)
        seen = np.flatnonzero(np.array(mask).reshape(-1))
        assert seen[-1] == slot
        assert len(seen) == slot - seen[0] + 1
        assert first_visible_slot(spec, slot, padding) == seen[0]
    assert Masks(Span(9, 1, (2, 3))).rows(spec, 2)[1] == [7, 6]
