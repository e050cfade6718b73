"""Defaults that a config.json leaves out, and unusual spellings of numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint, families
from macllm.errors import CheckpointError
from macllm.families.config import Config
from macllm.families.generation import generation_config
from macllm.nn.position import rotation
from macllm.nn.spec import BandScaling, Causal, LinearScaling, MoESpec, RoPESpec, Sliding
from tests.families.golden import golden

TOKENS = mx.array([[5, 6, 7, 8]])


def spec(kind: str, **values: Any) -> Any:
    return families.spec(Config({"model_type": kind, **values}))


def test_the_text_config_of_gemma_3_4b_gets_the_defaults_of_its_class() -> None:
    # a copy of its config.json
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    made = families.spec(Config(families.text_config({"model_type": "gemma3", "text_config": text})))
    assert (made.embedding.vocab_size, made.context_length, made.head.tied) == (262208, 131072, True)
    local, whole = made.decoder.layers[0].mixer, made.decoder.layers[5].mixer
    assert (local.num_heads, local.num_kv_heads, local.head_dim, local.scale) == (8, 4, 256, 256**-0.5)
    assert (local.mask, local.rope) == (Sliding(1024), RoPESpec(dims=256, base=10_000.0))
    assert (whole.mask, whole.rope) == (Causal(), RoPESpec(dims=256, base=1e6, scaling=LinearScaling(8.0)))
    assert made.decoder.final_norm.eps == 1e-6


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("gemma2", lambda s: (s.head.softcap, s.decoder.layers[0].mixer.logit_softcap), (30.0, 50.0)),
        ("mistral", lambda s: (s.decoder.layers[0].mixer.mask, s.decoder.layers[0].mixer.num_kv_heads), None),
        ("olmo2", lambda s: s.decoder.final_norm.eps, 1e-5),
        ("phi3", lambda s: s.decoder.final_norm.eps, 1e-5),
        ("mixtral", lambda s: s.decoder.layers[0].mixer.rope.base, 1e6),
        ("llama4_text", lambda s: s.decoder.layers[0].mixer.rope.base, 5e5),
        ("qwen3", lambda s: s.decoder.layers[0].mixer.head_dim, 128),
    ],
)
def test_each_family_has_the_defaults_of_its_config_class(kind: str, path: Any, value: Any) -> None:
    assert path(spec(kind)) == ((Sliding(4096), 8) if value is None else value)


def test_an_explicit_null_overrides_a_default() -> None:
    assert spec("gemma2", final_logit_softcapping=None).head.softcap is None
    assert spec("mistral", sliding_window=None).decoder.layers[0].mixer.mask == Causal()
    assert spec("mistral", num_key_value_heads=None).decoder.layers[0].mixer.num_kv_heads == 32


def test_layers_without_experts_are_dense() -> None:
    for changes in ({"num_experts": 0}, {"num_local_experts": 0}, {"mlp_only_layers": list(range(24))}):
        layers = spec("qwen3_moe", **changes).decoder.layers
        assert not any(isinstance(layer.feed_forward, MoESpec) for layer in layers)
    assert isinstance(spec("qwen3_moe", mlp_only_layers=None).decoder.layers[0].feed_forward, MoESpec)
    with pytest.raises(CheckpointError, match="without experts"):
        spec("mixtral", num_local_experts=0)


def test_equal_frequency_bounds_of_llama3_scaling_give_a_step() -> None:
    """Llama 4 Scout: low_freq_factor = high_freq_factor = 1, 8,192 positions, factor 16."""
    rope = RoPESpec(dims=128, base=5e5, scaling=BandScaling(16.0, 1.0, 1.0, 8192))
    waves, _ = rotation(rope, 0)
    plain = [5e5 ** (i / 128) for i in range(0, 128, 2)]
    # a wavelength within the trained length is kept, a longer one is scaled
    want = [wave if 8192 / (2 * np.pi * wave) >= 1 else 16 * wave for wave in plain]
    np.testing.assert_allclose(waves, want, rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 4.0},
        {"num_attention_heads": "6"},
        {"rms_norm_eps": "1e-06"},
        {"rope_parameters": {"rope_type": None, "rope_theta": "10000"}},
        {"max_position_embeddings": 1e30},
        {"max_position_embeddings": None},
        {"pad_token_id": -1, "eos_token_id": [2, None, "7", -1]},
        {"torch_dtype": "int7", "dtype": ["odd"]},
    ],
)
def test_unusual_numbers_are_accepted_with_one_note_each(
    changes: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = golden("llama").write(tmp_path)
    want = np.array(checkpoint.load_model(folder)(TOKENS))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING, logger="macllm"):
        model = checkpoint.load_model(folder)
    assert len(caplog.messages) == len(set(caplog.messages))
    np.testing.assert_allclose(np.array(model(TOKENS)), want, atol=1e-6)
    if "max_position_embeddings" in changes:
        assert model.info.context_length is None
    if "eos_token_id" in changes:
        assert model.info.eos == {2, 7}
        assert "which is not a token id" in caplog.text


@pytest.mark.parametrize("name", ["bert", "roberta", "bart", "longformer", "big_bird"])
@pytest.mark.parametrize("limit", [None, 1e30])
def test_without_a_stated_limit_the_context_is_the_position_table(name: str, limit: Any, tmp_path: Path) -> None:
    folder = golden(name).write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    stated = checkpoint.load_model(folder).info.context_length
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": limit}))
    assert checkpoint.load_model(folder).info.context_length == stated


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_generation_config_is_ignored_with_a_note(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = golden("llama").write(tmp_path)
    (folder / "generation_config.json").write_text(text)
    assert checkpoint.load_model(folder).info.eos == {2}
    assert "generation_config.json is not" in caplog.text


def test_a_config_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    folder = golden("llama").write(tmp_path)
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-8-sig")
    assert checkpoint.load_model(folder).spec == golden("llama").model().spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4.5}, "num_hidden_layers of config.json is 4.5, not a whole number"),
        ({"hidden_size": 0}, "hidden_size of config.json is 0"),
        ({"num_attention_heads": -6}, "num_attention_heads of config.json is -6"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps of config.json is 'tiny'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps of config.json is nan; it must be a finite number from 0"),
        ({"rms_norm_eps": "nan"}, "rms_norm_eps of config.json is nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps of config.json is inf"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps of config.json is inf"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps of config.json is -1e-06"),
        ({"rope_scaling": "linear", "rope_parameters": None}, "rope parameters of config.json are 'linear'"),
    ],
)
def test_an_invalid_number_is_named(changes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        families.spec(Config({**golden("llama").config, **changes}))


@pytest.mark.parametrize(
    ("name", "key"), [("bert", "layer_norm_eps"), ("gpt2", "layer_norm_epsilon"), ("t5", "layer_norm_epsilon")]
)
def test_an_epsilon_of_any_name_is_a_finite_number_from_zero(name: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} of config.json is nan"):
        families.spec(Config({**golden(name).config, key: float("nan")}))


@pytest.mark.parametrize(
    ("said", "gated", "activation"),
    [
        ({"feed_forward_proj": "gated-gelu"}, True, "gelu_tanh"),
        ({"feed_forward_proj": "gelu"}, False, "gelu"),
        ({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, False, "gelu_tanh"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}, True, "gelu"),
        ({"feed_forward_proj": "relu", "is_gated_act": True, "dense_act_fn": "silu"}, True, "silu"),
    ],
)
def test_the_derived_keys_of_t5_go_before_the_one_that_they_derive_from(
    said: dict, gated: bool, activation: str
) -> None:
    """As transformers' T5Config, which sets them from the file after it has derived them."""
    bare = {k: v for k, v in golden("t5").config.items() if k not in ("dense_act_fn", "is_gated_act")}
    layer = families.spec(Config({**bare, **said})).encoder.layers[0]
    assert (layer.feed_forward.gated, layer.feed_forward.activation) == (gated, activation)


@pytest.mark.parametrize("inner", [None, {}])
def test_an_empty_text_config_means_the_defaults_of_its_class(inner: dict | None) -> None:
    text = families.text_config({"model_type": "llama4", "text_config": inner})
    assert families.spec(Config(text)) == spec("llama4_text")


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [({}, {}, True), ({"tie_word_embeddings": False}, {}, False), ({}, {"tie_word_embeddings": False}, False),
     ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, True),
     ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, True)],
)  # fmt: skip
def test_a_head_is_tied_if_either_config_says_so(outer: dict, inner: dict, tied: bool) -> None:
    text = families.text_config({"model_type": "gemma3", "text_config": inner, **outer})
    assert families.spec(Config(text)).head.tied is tied


def test_a_text_config_that_is_not_an_object_is_named() -> None:
    with pytest.raises(CheckpointError, match="text_config of config"):
        families.text_config({"model_type": "gemma3", "text_config": [1]})


def test_an_unknown_kind_of_layer_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"layer_types of config\.json has 'mamba'; qwen2 supports full_attention"
    ):
        spec("qwen2", num_hidden_layers=2, layer_types=["mamba", "full_attention"])


# config.json, generation_config.json (None if absent) -> eos; the order is transformers'
ENDS = [
    ({"eos_token_id": [0, 2], "text_config": {"eos_token_id": 0}}, None, [0, 2]),
    ({"text_config": {"eos_token_id": [1, 106]}}, None, [1, 106]),
    ({"text_config": {}}, None, 1),  # Gemma3TextConfig's own
    ({"text_config": {}}, {"temperature": 1.0}, None),
    ({"eos_token_id": [0, 2], "text_config": {}}, {"temperature": 1.0}, [0, 2]),
    ({"eos_token_id": [0, 2], "text_config": {}}, {"eos_token_id": 5}, 5),
    ({"eos_token_id": None, "text_config": {"eos_token_id": 3}}, {"eos_token_id": None}, 3),
    ({"eos_token_id": 7, "text_config": {}}, {"eos_token_id": []}, 7),
    ({"eos_token_id": 7, "text_config": {}}, {"eos_token_id": [-1]}, 7),
    ({"eos_token_id": [], "text_config": {"eos_token_id": 3}}, {}, 3),
    ({"eos_token_id": "106"}, None, 106),
    ({"eos_token_id": 106.0}, None, 106),
    ({"eos_token_id": [1, None, -1, "x"]}, None, [1]),
    ({"decoder": {"eos_token_id": 4}, "eos_token_id": None}, None, 4),
]


@pytest.mark.parametrize(("config", "file", "eos"), ENDS)
def test_end_tokens_come_from_the_first_config_that_names_them(config: dict, file: dict | None, eos: Any) -> None:
    assert generation_config(config, file, "gemma3_text").get("eos_token_id") == eos


def test_a_decoder_starts_with_the_pad_token_of_its_class_by_default(tmp_path: Path) -> None:
    folder = golden("t5").write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.load_model(folder).info.decoder_start == 0  # T5Config's pad token
