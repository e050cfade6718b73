"""Performer attention: results, caches, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.errors import CheckpointError, MacllmError
from macllm.families.config import Config
from macllm.generation.cache_file import load_cache, save_cache
from macllm.nn.models import build
from macllm.nn.spec import AttentionSpec, PerformerSpec
from macllm.ops import using
from macllm.train.initial import initialize
from tests.simulator.intercept import simulated

CONFIG = {
    "model_type": "macllm",
    "attention_kind": "performer",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_random_features": 24,
    "max_position_embeddings": 8192,
}


def decoder(std: float = 0.2, **options: Any) -> Any:
    """A model with keys large enough to differ in weight."""
    model = build(families.spec(Config({**CONFIG, **options})))
    initialize(model, std, seed=5)
    model.eval()
    return model


def tokens(length: int, rows: int = 2) -> mx.array:
    return mx.array(np.random.default_rng(length).integers(3, 61, (rows, length)))


def near(got: Any, want: Any, error: float = 1e-5) -> None:
    got, want = np.array(got), np.array(want)
    assert np.abs(got - want).max() <= error * np.abs(want).max()


@pytest.mark.parametrize("chunks", [[1] * 30, [29, 1], [7, 1, 1, 20, 1], [150], [130, 1, 19]], ids=str)
@pytest.mark.parametrize("std", [0.2, 0.8], ids=["small keys", "large keys"])
@pytest.mark.parametrize("kind", ["performer", ["softmax", "performer"], ["performer", "softmax"]], ids=str)
def test_chunks_through_a_cache_equal_the_full_pass(chunks: list[int], std: float, kind: Any) -> None:
    model, row = decoder(std, attention_kind=kind), tokens(sum(chunks))
    cache, parts = model.make_cache(), []
    for part in mx.split(row, np.cumsum(chunks)[:-1].tolist(), axis=1):
        parts.append(model(part, cache=cache))
    assert cache.length == sum(chunks)
    near(mx.concatenate(parts, axis=1), model(row), 1e-4)


def test_a_layer_computes_the_papers_formula() -> None:
    model = decoder(num_hidden_layers=1)
    layer, x = model.decoder.layers[0].mixer, mx.random.normal((1, 21, 48), key=mx.random.key(1))

    def heads(name: str, count: int) -> np.ndarray:
        rows = np.array(x).astype(np.float64) @ np.array(layer[name].weight).astype(np.float64).T
        return rows.reshape(21, count, 8).transpose(1, 0, 2)

    angle = np.arange(21)[:, None] / 10_000 ** (np.arange(0, 8, 2) / 8)

    def turned(a: np.ndarray) -> np.ndarray:
        left, right = a[..., :4], a[..., 4:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def features(a: np.ndarray) -> np.ndarray:
        a = a / 8**0.25
        return np.exp(a @ np.array(layer.features).astype(np.float64).T - (a**2).sum(-1, keepdims=True) / 2)

    q, k = features(turned(heads("q_proj", 6))), features(turned(heads("k_proj", 2))).repeat(3, axis=0)
    weights = np.tril(q @ k.swapaxes(1, 2))
    y = weights / weights.sum(-1, keepdims=True) @ heads("v_proj", 2).repeat(3, axis=0)
    want = y.transpose(1, 0, 2).reshape(21, 48) @ np.array(layer.o_proj.weight).T

    from macllm.nn.mask import Masks
    from macllm.nn.position import Span

    near(layer(x, Masks(Span(0, 21)))[0], want, 1e-4)


def test_many_features_approximate_softmax_attention() -> None:
    exact = decoder(0.1, attention_kind="softmax")
    weights = dict(tree_flatten(exact.parameters()))

    def error(features: int) -> float:
        model = decoder(0.1, num_random_features=features)
        model.load_weights(list(weights.items()), strict=False)
        row = tokens(40)
        return float(mx.abs(model(row) - exact(row)).mean() / mx.abs(exact(row)).mean())

    few, many = error(16), error(4096)
    assert many < 0.1
    assert many < few / 4


def test_a_padded_row_gives_the_logits_of_the_row_alone() -> None:
    model, padding = decoder(), [0, 5]
    row = tokens(30)
    cache = model.make_cache(left_padding=padding)
    got = mx.concatenate([model(part, cache=cache) for part in mx.split(row, [3, 20, 21], axis=1)], axis=1)
    for number, n in enumerate(padding):
        near(got[number, n:], model(row[number : number + 1, n:])[0], 1e-4)


def test_later_tokens_do_not_change_earlier_logits() -> None:
    model, row = decoder(0.8), tokens(40)
    near(model(row[:, :25]), model(row)[:, :25])


def test_features_are_saved_but_not_trained() -> None:
    model = decoder()
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert not any("features" in name for name in trained)
    held = [value for name, value in tree_flatten(model.parameters()) if name.endswith("features")]
    assert [value.shape for value in held] == [(24, 8), (24, 8)]
    assert not mx.array_equal(*held)


def test_the_cache_has_constant_size() -> None:
    model, cache, sizes = decoder(), None, []
    cache = model.make_cache()
    for part in mx.split(tokens(300), [1], axis=1):
        mx.eval(model(part, cache=cache))
        sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1] > 0


def test_a_cache_of_sums_can_only_go_back_to_length_0() -> None:
    model = decoder(attention_kind=["softmax", "performer"])
    cache = model.make_cache()
    model(tokens(9), cache=cache)
    with pytest.raises(MacllmError, match="cannot go back to 8 of this cache's 9 tokens, only to 0"):
        cache.cut(8)


def test_a_saved_cache_continues_after_loading(tmp_path: Path) -> None:
    model, row = decoder(attention_kind=["softmax", "performer"]), tokens(20, 1)
    cache = model.make_cache()
    model(row[:, :12], cache=cache)
    save_cache(model, cache, tmp_path / "cache", row[0, :12].tolist())
    again, _ = load_cache(model, tmp_path / "cache")
    np.testing.assert_array_equal(np.array(model(row[:, 12:], cache=again)), np.array(model(row[:, 12:], cache=cache)))


def test_kernels_equal_the_reference() -> None:
    model, row = decoder(), tokens(21, 1)

    def run() -> mx.array:
        cache = model.make_cache()
        parts = [model(part, cache=cache) for part in mx.split(row, [19, 20], axis=1)]
        mx.eval(parts)
        return mx.concatenate(parts, axis=1)

    want = run()
    with simulated() as log, using("metal"):
        got = run()
    assert log.faults == []
    assert {"linear_attention", "linear_decode"} <= {name for name, _ in log.dispatches}
    near(got, want, 1e-4)


@pytest.mark.parametrize("backwards", [False, True], ids=["inference", "training"])
def test_memory_is_linear_in_the_length(backwards: bool) -> None:
    model = decoder(num_hidden_layers=1)

    def run(model: nn.Module, row: mx.array) -> mx.array:
        return mx.square(model(row)).sum()

    def peak(length: int) -> int:
        row, before = tokens(length, 1), mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(nn.value_and_grad(model, run)(model, row) if backwards else run(model, row))
        return mx.get_peak_memory() - before

    mx.eval(model.parameters())
    assert peak(6000) <= 5 * peak(1500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_kind": "sine"}, "attention_kind of config.json is 'sine', not softmax or performer"),
        ({"attention_kind": ["performer"]}, "attention_kind lists 1 layers, but num_hidden_layers is 2"),
        ({"num_random_features": 0}, "num_random_features of config.json is 0"),
        ({"num_random_features": "many"}, "num_random_features of config.json is 'many'"),
    ],
)
def test_an_invalid_config_raises_an_error_with_the_value(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        families.spec(Config({**CONFIG, **change}))


def test_a_config_without_an_attention_kind_is_a_llama() -> None:
    spec = families.spec(Config({**CONFIG, "attention_kind": None}))
    llama = families.spec(Config({**CONFIG, "model_type": "llama"}))
    assert spec == llama
    assert all(type(layer.mixer) is AttentionSpec for layer in spec.decoder.layers)
    every = families.spec(Config(CONFIG)).decoder.layers
    assert [(type(layer.mixer), layer.mixer.seed) for layer in every] == [
        (PerformerSpec, 0),
        (PerformerSpec, 1),
    ]
