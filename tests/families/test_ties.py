"""Tied matrices: the tensors of the file decide, under whatever names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint
from macllm.errors import CheckpointError, UsageError
from macllm.weights.safetensors import load_file, save_folder
from tests.families.golden import golden

TOKENS = mx.array([[5, 6, 7, 8, 9]])
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def parameters(model: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def noise(like: mx.array, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(like.shape).astype(np.float32) * 0.2)


def logits(config: dict, tensors: dict[str, mx.array]) -> np.ndarray:
    model = checkpoint.assemble(config, dict(tensors))
    spec = model.spec
    if hasattr(model, "start"):
        return np.array(model(TOKENS, source=TOKENS + 11))
    hidden = model.hidden(TOKENS)
    return np.array(model.logits(hidden) if spec.head else hidden)


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "gemma3_text", "qwen3"])
def test_a_tied_matrix_is_read_under_any_of_its_names(name: str) -> None:
    config, tensors = golden(name).config, golden(name).tensors()
    want = logits(config, tensors)
    matrix = tensors.pop(EMBED)
    for held in ({HEAD: matrix}, {EMBED: matrix, HEAD: matrix + 0}, {"embed_tokens.weight": matrix}):
        np.testing.assert_array_equal(logits(config, tensors | held), want)


def test_a_head_that_differs_from_its_tied_embedding_is_read() -> None:
    config, tensors = golden("llama-tied").config, golden("llama-tied").tensors()
    other = noise(tensors[EMBED])
    want = logits({**config, "tie_word_embeddings": False}, tensors | {HEAD: other})
    np.testing.assert_array_equal(logits(config, tensors | {HEAD: other}), want)
    assert np.abs(want - logits(config, tensors)).max() > 0.1


def test_a_separate_head_is_saved_as_untied(tmp_path: Path) -> None:
    folder = golden("llama-tied").write(tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    save_folder(tensors | {HEAD: noise(tensors[EMBED])}, folder, {"format": "pt"})
    model = checkpoint.load_model(folder)
    checkpoint.save(model, None, tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(np.array(checkpoint.load_model(tmp_path / "b")(TOKENS)), np.array(model(TOKENS)))


def test_a_quantized_embedding_is_read_under_the_name_of_the_head() -> None:
    config = golden("llama-tied").config | {"quantization": {"bits": 4, "group_size": 32, "mode": "affine"}}
    tensors = golden("llama-tied").tensors()
    table = noise(mx.zeros((97, 64)))
    wide = {**config, "hidden_size": 64, "head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 6}
    packed = dict(zip(("weight", "scales", "biases"), mx.quantize(table, group_size=32, bits=4), strict=True))
    rest = {
        name: noise(mx.zeros(tuple(64 if n == 48 and at else n for at, n in enumerate(array.shape))))
        for name, array in tensors.items()
        if name not in (EMBED, HEAD)
    }
    sizes = {"q_proj": (48, 64), "k_proj": (48, 64), "v_proj": (48, 64), "o_proj": (64, 48), "down_proj": (64, 80)}
    for name, array in rest.items():
        leaf = name.split(".")[-2]
        rest[name] = noise(mx.zeros(sizes[leaf])) if leaf in sizes else array
        if "norm" in name:
            rest[name] = mx.ones(64)
    as_table = rest | {f"model.embed_tokens.{leaf}": array for leaf, array in packed.items()}
    as_head = rest | {f"lm_head.{leaf}": array for leaf, array in packed.items()}
    want = logits(wide, as_table)
    np.testing.assert_array_equal(logits(wide, as_head), want)
    np.testing.assert_array_equal(logits(wide, as_table | as_head), want)
    named = wide | {"quantization": wide["quantization"] | {"bits": 8, "lm_head": {"bits": 4, "group_size": 32}}}
    np.testing.assert_array_equal(logits(named, as_head), want)


def test_a_missing_untied_head_is_named() -> None:
    tensors = golden("llama").tensors()
    del tensors[HEAD]
    with pytest.raises(CheckpointError, match=r"1 missing tensor in the checkpoint: lm_head\.weight"):
        checkpoint.assemble(golden("llama").config, tensors)


def test_a_model_without_a_head_gives_hidden_states_and_refuses_logits(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop(HEAD)
    bare = {name.removeprefix("model."): array + 0 for name, array in tensors.items()}
    save_folder(bare, folder, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    model: Any = checkpoint.load_model(folder)
    whole = golden("llama").model()
    np.testing.assert_array_equal(np.array(model.hidden(TOKENS)), np.array(whole.hidden(TOKENS)))
    assert mx.allclose(model.hidden(TOKENS) @ head.T, whole(TOKENS), atol=1e-4)
    with pytest.raises(UsageError, match="has no head"):
        model(TOKENS)
    assert model.info.kind == "encoder"  # so that requests to generate are refused with a remedy
    checkpoint.save(model, None, tmp_path / "again")
    assert HEAD not in load_file(tmp_path / "again" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "table", "head"),
    [
        ("bert", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"),
        ("roberta", "roberta.embeddings.word_embeddings.weight", "lm_head.decoder"),
        ("longformer", "longformer.embeddings.word_embeddings.weight", "lm_head.decoder"),
        ("big_bird", "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder"),
    ],
)
def test_a_masked_lm_head_with_its_own_matrix_and_bias_is_read(name: str, table: str, head: str) -> None:
    config, tensors = golden(name).config, golden(name).tensors()
    tied = logits(config, tensors)
    bias = head.removesuffix(".decoder") + ".bias"
    repeated = {f"{head}.weight": tensors[table] + 0, f"{head}.bias": tensors[bias] + 0}
    np.testing.assert_array_equal(logits(config, tensors | repeated), tied)
    # the head is transform(hidden) @ matrix.T + bias
    matrix, shift = noise(tensors[table], 1), noise(tensors[bias], 2)
    free = checkpoint.assemble(config, tensors | {f"{head}.weight": matrix, f"{head}.bias": shift})
    assert mx.array_equal(parameters(free)["head.proj.weight"], matrix)
    hidden = free.hidden(TOKENS)
    want = np.array(free.head.transform(hidden)) @ np.array(matrix).T + np.array(shift)
    np.testing.assert_allclose(np.array(free.logits(hidden)), want, atol=1e-4)
    assert np.abs(want - tied).max() > 0.1


@pytest.mark.parametrize(("name", "prefix"), [("bart", "model."), ("t5", ""), ("t5-v1.1", ""), ("marian", "model.")])
def test_different_encoder_and_decoder_embeddings_are_both_read(name: str, prefix: str, tmp_path: Path) -> None:
    config, tensors = golden(name).config, golden(name).tensors()
    shared, decoder = f"{prefix}shared.weight", f"{prefix}decoder.embed_tokens.weight"
    encoder = f"{prefix}encoder.embed_tokens.weight"
    alike = logits(config, tensors)
    held = dict(tensors)
    matrix = held.pop(shared)
    for one in ({shared: matrix}, {encoder: matrix}, {decoder: matrix, encoder: matrix + 0}):
        np.testing.assert_array_equal(logits(config, held | one), alike)
    for differing in (decoder, encoder):
        model = checkpoint.assemble(config, tensors | {differing: noise(matrix, 3)})
        mine = parameters(model)
        assert mx.array_equal(mine["embedding.tokens.weight"], matrix) == (differing != encoder)
        assert mx.array_equal(mine["target_embedding.tokens.weight"], matrix) == (differing != decoder)
        assert mx.array_equal(mine["head.proj.weight"], tensors.get(HEAD, matrix))  # the head is tied to `shared`
        got = np.array(model(TOKENS, source=TOKENS + 11))
        assert np.abs(got - alike).max() > 0.01
        model.info = replace(model.info, config=config)
        checkpoint.save(model, None, tmp_path / differing)
        again = checkpoint.load_model(tmp_path / differing)
        np.testing.assert_array_equal(np.array(again(TOKENS, source=TOKENS + 11)), got)


def test_position_tables_that_differ_from_sines_are_read() -> None:
    config, tensors = golden("marian").config, golden("marian").tensors()
    plain = logits(config, tensors)
    model = checkpoint.assemble(config, dict(tensors))
    sines = mx.array(model.embedding.positions.table)
    name = "model.encoder.embed_positions.weight"
    for stored in (sines, sines.astype(mx.float16), sines.astype(mx.bfloat16)):
        np.testing.assert_array_equal(logits(config, tensors | {name: stored}), plain)
    swapped = mx.concatenate([sines[:, 24:], sines[:, :24]], axis=1)
    held = checkpoint.assemble(config, tensors | {name: swapped})
    assert mx.array_equal(parameters(held)["embedding.positions.table.weight"], swapped)
    assert np.abs(np.array(held(TOKENS, source=TOKENS + 11)) - plain).max() > 0.01


def test_old_names_of_layer_norms_are_read() -> None:
    config, tensors = golden("bert").config, golden("bert").tensors()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors.items()
    }
    assert old.keys() != tensors.keys()
    np.testing.assert_array_equal(logits(config, old), logits(config, tensors))


def test_two_tensors_for_one_place_are_named_unless_they_are_equal() -> None:
    config, tensors = golden("bert").config, golden("bert").tensors()
    name = "bert.encoder.layer.0.output.dense.bias"
    bare = name.removeprefix("bert.")
    np.testing.assert_array_equal(logits(config, tensors | {bare: tensors[name] + 0}), logits(config, tensors))
    with pytest.raises(CheckpointError, match="differ but are the same weight") as raised:
        checkpoint.assemble(config, tensors | {bare: tensors[name] + 1})
    assert name in str(raised.value)
    assert bare in str(raised.value)
