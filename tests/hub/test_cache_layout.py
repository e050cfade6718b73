"""Sizes of caches from a config.json, against the bytes that the model's real cache holds."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest

from macllm.families import foreign
from macllm.hub.shape import read_shape
from macllm.nn.info import ModelInfo
from tests.families.foreign import CASES, REFUSED, SMALL

TOKENS = 256  # one step of the size by which mlx-lm's caches grow
BASE = SMALL | {"num_hidden_layers": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "v_head_dim": 24,
          "qk_nope_head_dim": 16}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1,
           "shared_expert_intermediate_size": 32, "mlp_only_layers": [], "norm_topk_prob": True}  # fmt: skip
DELTA = {"linear_conv_kernel_dim": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 16, "linear_value_head_dim": 12, "full_attention_interval": 2,
         "partial_rotary_factor": 0.25, "head_dim": 32}  # fmt: skip
KIMI = {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4, "kda_layers": [1], "full_attn_layers": [2]}
# Configs as they are on hubs, one for each kind of cache; `foreign.json` has transformers' spellings of many more.
SPELLED: dict[str, dict[str, Any]] = {
    "minicpm3": {**LATENT, "v_head_dim": 16, "dim_model_base": 32, "scale_emb": 12, "scale_depth": 1.4,
                 "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "conv_kernel": 4, "n_groups": 2, "use_bias": False,
               "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "time_step_limit": [0.0, 1.0], "time_step_rank": 4,
               "intermediate_size": 128, "chunk_size": 16, "ssm_state_size": 8, "max_position_embeddings": 64},
    "qwen3_next": {**DELTA, **EXPERTS},
    "kimi_linear": {**LATENT, "linear_attn_config": KIMI, "head_dim": 24, "num_experts": 4, "moe_intermediate_size": 32,
                    "model_max_length": 64, "num_shared_experts": 1, "num_experts_per_token": 2,
                    "moe_renormalize": True, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1,
                    "num_expert_group": 1, "topk_group": 1, "q_lora_rank": None},
    "nemotron_h": {"num_hidden_layers": 4, "hybrid_override_pattern": "M-*M", "mamba_num_heads": 4,
                   "mamba_head_dim": 16, "ssm_state_size": 8, "conv_kernel": 4, "n_groups": 2, "attention_bias": False,
                   "mamba_proj_bias": False, "mlp_bias": False, "use_bias": False, "use_conv_bias": True,
                   "head_dim": 16, "mlp_hidden_act": "relu2", "layer_norm_epsilon": 1e-5},
    "lfm2": {"conv_L_cache": 3, "full_attn_idxs": [1], "norm_eps": 1e-5, "conv_bias": False, "block_dim": 64,
             "block_ff_dim": 64, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0,
             "block_auto_adjust_ff_dim": False},
    "rwkv7": {"norm_eps": 1e-5, "head_dim": 16, "a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8,
              "decay_low_rank_dim": 8},
}  # fmt: skip


def held_bytes(config: dict[str, Any]) -> int:
    """Bytes of the cache of a random float32 model after `TOKENS` tokens."""
    from mlx_lm.utils import _get_classes

    text = foreign.text_config(config)
    spelled = foreign.translated(config, text)
    kind = str(spelled["model_type"])
    made, reader = _get_classes(spelled)
    model = foreign.ForeignLM(made(reader.from_dict(spelled)), kind, ModelInfo())
    cache = model.make_cache()
    for count in (TOKENS - 1, 1):  # a window drops what it does not need at the next token
        logits = model(mx.zeros((1, count), mx.int32), cache)
        mx.eval(logits, cache.state)
    return cache.nbytes


@pytest.mark.parametrize("kind", SPELLED)
def test_the_bytes_of_a_cache_are_those_that_the_model_holds(kind: str) -> None:
    config = BASE | SPELLED[kind] | {"model_type": kind}
    shape = read_shape(config)
    assert shape.cache
    assert shape.cache_bytes(TOKENS, 4) == held_bytes(config)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED.keys()))
def test_the_bytes_of_a_cache_follow_from_transformers_configs(name: str) -> None:
    import transformers

    kind, options = name.partition("-")[0], CASES[name]
    given = options if "text_config" in options else SMALL | options
    if kind in ("gpt_neox", "gptj"):  # their real configs have no such key, and their classes ignore it
        given = {key: value for key, value in given.items() if key != "num_key_value_heads"}
    made = transformers.CONFIG_MAPPING[kind](**given).to_dict()
    config = json.loads(json.dumps(made, default=str))
    predicted = read_shape(config).cache_bytes(TOKENS, 4)
    assert predicted == held_bytes(config)
