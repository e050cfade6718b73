"""The context length that a config.json states, RoPE scaling included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm import families
from macllm.families.config import Config
from macllm.nn.info import describe

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
FACTORS = [1.0] * 6
LONG = {"short_factor": FACTORS, "long_factor": FACTORS, "original_max_position_embeddings": 32}
GEMMA3 = {"model_type": "gemma3_text", "head_dim": 12, "sliding_window": 16, "query_pre_attn_scalar": 12}

SPELLED: list[tuple[dict[str, Any], int | None]] = [
    ({}, 64),
    ({"max_position_embeddings": None}, None),
    ({"model_max_length": 128}, 128),  # Command R's
    ({"model_max_length": "128"}, 128),
    ({"model_max_length": 128.0}, 128),
    *(({"model_max_length": odd}, 64) for odd in (1e30, -1, 0, True, [1], "long", float("nan"))),
    ({"model_max_length": 128, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 256),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}, 256),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}, 128),
    ({"rope_scaling": {"type": "yarn", "factor": 4}}, 256),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.5}, "original_max_position_embeddings": 32}, 80),
    ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}}, 64),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}}, 512),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}, 192),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 128),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 64),
    (
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        64,
    ),
    ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}}, 256),
    ({"model_type": "qwen3", "head_dim": 12, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 256),
    ({"model_type": "mistral", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 128),
    ({"model_type": "phi3", "rope_scaling": {"type": "longrope", **LONG}}, 64),
    ({"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 2.0, **LONG}}, 64),
    ({**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 64),
]


@pytest.mark.parametrize(("config", "length"), SPELLED, ids=[str(config) for config, _ in SPELLED])
def test_the_context_length_includes_rope_scaling(config: dict[str, Any], length: int | None) -> None:
    assert families.spec(Config({**LLAMA, **config})).context_length == length


GPT2 = {"model_type": "gpt2", "vocab_size": 97, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32}
SEQ2SEQ = {"vocab_size": 97, "d_model": 48, "max_position_embeddings": 40} | {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("ffn_dim", 80), ("attention_heads", 4))
}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LLAMA, None),
        (GPT2, 32),
        ({**SEQ2SEQ, "model_type": "bart"}, 40),
        ({**SEQ2SEQ, "model_type": "marian"}, 40),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_only_models_with_position_tables_have_a_position_count(config: dict[str, Any], count: int | None) -> None:
    assert describe(families.spec(Config(config))).position_count == count


SCALED = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-of-all": {"rope_type": "yarn", "factor": 4.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "none": None,
}


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Mistral"])
def test_logits_beyond_the_trained_length_equal_transformers(kind: str, name: str, tmp_path: Path) -> None:
    import mlx.core as mx
    import torch
    import transformers

    from macllm.checkpoint import load_model

    torch.manual_seed(0)
    options = {key: value for key, value in LLAMA.items() if key != "model_type"}
    rope = None if SCALED[name] is None else {"rope_theta": 10_000.0, **SCALED[name]}
    extra = {"head_dim": 12} if kind == "Qwen3" else {"sliding_window": None} if kind == "Mistral" else {}
    config = getattr(transformers, f"{kind}Config")(**options, **extra, rope_parameters=rope, initializer_range=0.3)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = np.random.default_rng(0).integers(3, 97, 200)
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)[None]).logits[0].numpy()
    model = load_model(tmp_path)
    got = np.array(model(mx.array(tokens)[None]))[0]
    assert np.abs(got - want).max() < 2e-4 * np.abs(want).max()
    cache = model.make_cache(max_context=200)
    stepped = [model(mx.array(part)[None], cache=cache) for part in np.split(tokens, [1, 50, 70, 199])]
    assert np.abs(np.array(mx.concatenate(stepped, axis=1))[0] - want).max() < 2e-4 * np.abs(want).max()
