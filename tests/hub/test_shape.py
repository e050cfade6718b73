"""Sizes of models from their config.json, against the specs of the families, which build the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macllm import families
from macllm.families.config import Config
from macllm.families.foreign_layout import KNOWN_WRONG
from macllm.hub import support
from macllm.hub.shape import LayerCache, ModelShape, read_shape
from macllm.nn.spec import Chunked, DecoderSpec, Sliding
from tests.families.golden import golden

GOLDEN = sorted(path.stem for path in (Path(__file__).parents[1] / "families" / "golden").glob("*.npz"))
FAMILIES = ("gemma2", "gemma3_text", "llama", "llama4_text", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3",
            "qwen3_moe")  # fmt: skip
DECODERS = [name for name in GOLDEN if name.split("-")[0] in FAMILIES and "both-ways" not in name]
GEMMA = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 12, "sliding_window": 1024}


def of_families(config: dict[str, Any]) -> tuple[int | None, list[LayerCache]]:
    spec = families.spec(Config(families.text_config(config), ()))
    assert isinstance(spec, DecoderSpec)
    layers: list[LayerCache] = []
    for layer in spec.decoder.layers:
        mask = layer.mixer.mask
        window = mask.window if isinstance(mask, Sliding) else mask.size if isinstance(mask, Chunked) else None
        layers.append(LayerCache(2 * layer.mixer.num_kv_heads * layer.mixer.head_dim, window))
    return spec.context_length, layers


@pytest.mark.parametrize("name", DECODERS)
def test_context_and_cache_are_those_of_the_model_that_the_family_builds(name: str) -> None:
    config = golden(name).config
    found = read_shape(config)
    context, layers = of_families(config)
    assert found.context_tokens == context
    assert found.cache is not None
    for ours, theirs in zip(found.cache, layers, strict=True):
        assert ours.values == theirs.values
        # A layer whose window the config does not show plainly may count as full: never too small.
        assert ours.window in (theirs.window, None)


@pytest.mark.parametrize("config", [GEMMA, {"model_type": "gemma3", "text_config": GEMMA}])
def test_values_that_gemma_leaves_out_are_filled_in(config: dict[str, Any]) -> None:
    context, layers = of_families(config)
    found = read_shape(config)
    assert (found.context_tokens, list(found.cache or ())) == (context, layers)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "4-bit"),
        ({"quantization": {"bits": 8, "mode": "affine"}}, "8-bit"),
        ({"quantization": {"bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"torch_dtype": "bfloat16"}, "bf16"),
        ({"text_config": {"dtype": "float16"}}, "f16"),
        ({"quantization": "q4", "dtype": 7}, ""),
        ({}, ""),
    ],
)
def test_the_kind_of_weights_is_named(config: dict[str, Any], label: str) -> None:
    assert read_shape(config).quantization == label


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "deepseek_v3", "kv_lora_rank": 512},  # without qk_rope_head_dim
        {"model_type": "of_another_kind", "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        {"model_type": "mamba", "state_size": 16},  # without a kernel
        {"model_type": "qwen3_next", "linear_num_key_heads": 16},
        {"model_type": "llama", "layer_types": ["spiral_attention"] * 4},
        {"model_type": "iquestloopcoder"},
        {"num_hidden_layers": "many"},
        {"layer_types": ["full_attention"]},
        {"layer_types": [1, 2]},
        {"head_dim": -1, "hidden_size": True},
        {"text_config": [1], "rope_scaling": "x", "max_position_embeddings": None},
        {},
    ],
)
def test_an_unknown_cache_is_not_guessed_and_odd_values_do_no_harm(config: dict[str, Any]) -> None:
    whole = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64} if "model_type" in config else {}
    found = read_shape({**whole, **config})
    assert found.cache is None
    assert found.cache_bytes(100, 2) == 0


def test_only_the_attention_of_a_hybrid_grows() -> None:
    shape = ModelShape(cache=(LayerCache(10, None), LayerCache(7, 1), LayerCache(5, 1, 4)))
    assert [shape.cache_bytes(tokens, 2) for tokens in (1, 10, 1000)] == [20 + 34, 200 + 34, 20_000 + 34]


def test_a_windows_cache_stops_growing() -> None:
    shape = ModelShape(cache=(LayerCache(10, None), LayerCache(10, 100)))
    assert [shape.cache_bytes(tokens, 2) for tokens in (50, 100, 1000)] == [2000, 4000, 22_000]


def test_the_lists_of_types_are_those_of_the_families() -> None:
    from macllm.families.foreign import MODULES

    assert set(families.FAMILIES) == support.OWN
    assert set(MODULES) == support.RENAMED
    assert set(KNOWN_WRONG) == support.WRONG


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3", "kimi_k2", "lfm2", "qwen3_5_text", "gpt_oss", "glm4_moe"])
def test_types_of_the_families_and_of_mlx_lm_are_supported(kind: str) -> None:
    assert support.unsupported({"model_type": kind}) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "no model_type"),
        ({"model_type": 3}, "no model_type"),
        ({"model_type": "whisper"}, "whisper is not supported"),
        ({"model_type": "minimax"}, "minimax is not supported"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantized by gptq"),
    ],
)
def test_the_reason_for_an_unsupported_model_is_given(config: dict[str, Any], reason: str) -> None:
    assert reason in (support.unsupported(config) or "")
