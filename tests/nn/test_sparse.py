"""Sparse attention: results, visible keys, and memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macllm import families
from macllm.errors import CheckpointError, UsageError
from macllm.families.config import Config
from macllm.nn.mask import GlobalTokens
from macllm.nn.models import build
from macllm.nn.sparse import draw_blocks
from macllm.nn.spec import Local
from tests.families.golden import golden

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 61}
LONG = {"max_position_embeddings": 8192}
CONFIGS: dict[str, dict[str, Any]] = {
    "longformer": {"model_type": "longformer", "attention_window": 128, "type_vocab_size": 1},
    "big_bird": {"model_type": "big_bird", "block_size": 32, "num_random_blocks": 1},
}


def encoder(name: str, **options: Any) -> Any:
    mx.random.seed(3)
    model = build(families.spec(Config({**CONFIGS[name], **SIZES, **LONG, **options})))
    model.eval()
    mx.eval(model.parameters())
    return model


def tokens(length: int, rows: int = 2) -> mx.array:
    return mx.array(np.random.default_rng(length).integers(3, 61, (rows, length)))


def reach(model: Any, length: int, query: int, chosen: mx.array | None = None) -> set[int]:
    """Positions whose embeddings change the result at `query`, in a model of one layer."""
    span_tokens = tokens(length, 1)
    more = {} if chosen is None else {"global_tokens": chosen}
    table = model.embedding.positions.table

    def at(rows: mx.array) -> mx.array:
        table.weight = rows
        return (model(span_tokens, **more)[0, query] * mx.arange(32)).sum()

    before = table.weight
    slopes = mx.grad(at)(before)
    table.weight = before
    moved = np.abs(np.array(slopes)).max(-1)[model.embedding.positions.offset :][:length]
    return set(np.flatnonzero(moved > 0).tolist())


def test_a_window_has_half_its_positions_on_each_side() -> None:
    model = encoder("longformer", attention_window=10)
    assert reach(model, 77, 40) == set(range(35, 46))
    assert reach(model, 77, 2) == set(range(8))
    assert reach(model, 77, 76) == set(range(71, 77))


def test_a_global_token_sees_all_and_is_seen_by_all() -> None:
    model = encoder("longformer", attention_window=10)
    chosen = mx.arange(77)[None] == 5
    assert reach(model, 77, 5, chosen) == set(range(77))
    assert reach(model, 77, 60, chosen) == {5, *range(55, 66)}
    assert reach(model, 77, 8, chosen) == set(range(3, 14))


def test_a_block_sees_its_neighbours_and_both_ends() -> None:
    model = encoder("big_bird", block_size=4)
    assert reach(model, 45, 20) == {*range(4), *range(16, 28), 44}
    assert reach(model, 45, 5) == {*range(12), 44}
    assert reach(model, 45, 41) == {*range(4), *range(36, 45)}
    assert reach(model, 45, 1) == reach(model, 45, 44) == set(range(45))


def test_a_block_sees_its_random_blocks_in_training() -> None:
    model = encoder("big_bird", block_size=4)
    model.train()
    drawn = draw_blocks(model.spec.encoder.layers[0].mixer, 12)[:, 4].flatten().tolist()
    more = {4 * block + place for block in drawn for place in range(4)}
    assert reach(model, 45, 20) == {*range(4), *range(16, 28), 44} | more
    assert more - {*range(4), *range(16, 28)}


@pytest.mark.parametrize("length", [705, 1000, 1024, 3072])
def test_random_blocks_differ_from_the_fixed_ones(length: int) -> None:
    spec = families.spec(Config({"model_type": "big_bird"})).encoder.layers[3].mixer
    for head in draw_blocks(spec, -(-length // 64)):
        for row, blocks in enumerate(head, start=1):
            assert not {0, row - 1, row, row + 1} & set(blocks.tolist())


def test_each_layer_draws_different_blocks_and_the_same_every_time() -> None:
    layers = families.spec(Config({"model_type": "big_bird"})).encoder.layers
    first, again, other = (draw_blocks(layers[n].mixer, 20) for n in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("name", ["longformer", "big_bird"])
def test_a_padded_row_gives_the_result_of_the_row_alone(name: str) -> None:
    if name == "big_bird":  # its last block is the batch's, so both have equal lengths in blocks
        lengths, model = [47, 45], encoder(name, block_size=4)
    else:
        lengths, model = [47, 20], encoder(name, attention_window=8)
    both = tokens(47)
    got = np.array(model(both, lengths=mx.array(lengths)))
    for row, length in enumerate(lengths):
        alone = np.array(model(both[row : row + 1, :length]))[0]
        np.testing.assert_allclose(got[row, :length], alone, atol=2e-6)


def test_global_tokens_in_padding_are_ignored() -> None:
    model = encoder("longformer", attention_window=8)
    lengths, named = mx.array([45, 20]), mx.arange(45)[None] == mx.array([[3], [30]])
    with_padding = model(tokens(45), lengths=lengths, global_tokens=named)
    inside = model(tokens(45), lengths=lengths, global_tokens=mx.array([[True], [False]]) & named)
    np.testing.assert_array_equal(np.array(with_padding[1, :20]), np.array(inside[1, :20]))
    assert GlobalTokens.of(mx.zeros((2, 5), mx.bool_)) is None
    assert GlobalTokens.of(mx.ones((1, 5), mx.bool_), mx.array([0])) is None


def test_a_model_without_global_tokens_refuses_them() -> None:
    with pytest.raises(UsageError, match="does not support global tokens"):
        golden("bert").model()(tokens(9), global_tokens=mx.ones((2, 9), mx.bool_))


def test_each_layer_has_its_window() -> None:
    spec = families.spec(Config({**golden("longformer").config, "attention_window": [2, 8, 64]}))
    assert [layer.mixer.mask for layer in spec.encoder.layers] == [Local(2), Local(5), Local(33)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("longformer", {"attention_window": 7}, "attention_window of config.json has 7"),
        ("longformer", {"attention_window": [8, 0, 8]}, "attention_window of config.json has 0"),
        ("longformer", {"attention_window": [8, 8]}, "attention_window lists 2 layers, but num_hidden_layers is 3"),
        ("longformer", {"attention_window": "wide"}, "attention_window of config.json is 'wide'"),
        ("big_bird", {"attention_type": "sparse"}, "attention_type of config.json is 'sparse'"),
        ("big_bird", {"block_size": 0}, "block_size of config.json is 0"),
        ("big_bird", {"num_random_blocks": -1}, "num_random_blocks of config.json is -1"),
    ],
)
def test_an_invalid_config_raises_an_error_with_the_value(name: str, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        families.spec(Config({**golden(name).config, **change}))


def peak(model: Any, length: int, backwards: bool, **more: Any) -> int:
    """Peak memory of a call in bytes, without model and inputs."""
    row = tokens(length)

    def run(model: nn.Module) -> mx.array:
        return mx.square(model(row, lengths=mx.array([length, length - 7]), **more)).sum()

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(nn.value_and_grad(model, run)(model) if backwards else run(model))
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("backwards", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ["longformer", "global", "big_bird"])
def test_memory_is_linear_in_the_length(kind: str, backwards: bool) -> None:
    model = encoder("longformer" if kind == "global" else kind)

    def used(length: int) -> int:
        more = {"global_tokens": mx.broadcast_to(mx.arange(length) == 5, (2, length))} if kind == "global" else {}
        return peak(model, length, backwards, **more)

    short, long = used(1500), used(6000)
    assert long <= 5 * short
    assert long <= 2 * 2 * 6000 * 6000 * 4 / (2 if backwards else 4)  # of all scores of two heads of two rows
