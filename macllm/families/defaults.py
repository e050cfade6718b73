"""Class defaults for values that a config.json omits, and odd spellings of numbers.

The table has the defaults of transformers 5.24's config classes that affect a model's output.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from macllm.errors import CheckpointError

log = logging.getLogger("macllm")

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "rope_theta": 10_000.0,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN: dict[str, Any] = _LLAMA | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "tie_word_embeddings": True, "rope_theta": 10_000.0, "attention_bias": False, "query_pre_attn_scalar": 256.0,
    "sliding_window": 4096, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
_BART: dict[str, Any] = {
    "vocab_size": 50265, "max_position_embeddings": 1024, "encoder_layers": 12, "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16, "decoder_layers": 12, "decoder_ffn_dim": 4096, "decoder_attention_heads": 16,
    "activation_function": "gelu", "d_model": 1024, "scale_embedding": False, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip

DEFAULTS: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "bert": _BERT,
    "big_bird": _BERT | {
        "vocab_size": 50358, "hidden_act": "gelu_new", "max_position_embeddings": 4096, "bos_token_id": 1,
        "eos_token_id": 2, "attention_type": "block_sparse", "use_bias": True, "rescale_embeddings": False,
        "block_size": 64, "num_random_blocks": 3,
    },
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {
        "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6, "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    },
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
        "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": True,
    },
    "llama": _LLAMA,
    "llama4_text": _LLAMA | {
        "vocab_size": 202048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_experts_per_tok": 1, "num_local_experts": 16,
        "interleave_moe_layer_step": 1, "use_qk_norm": True, "rope_theta": 500_000.0, "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192.0, "attn_scale": 0.1,
    },
    "longformer": _BERT | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "macllm": _LLAMA | {"attention_kind": "softmax", "num_random_features": 256, "position_kind": "rope"},
    "marian": _BART | {
        "vocab_size": 58101, "decoder_start_token_id": 58100, "pad_token_id": 58100, "eos_token_id": 0,
        "bos_token_id": None, "forced_eos_token_id": 0, "share_encoder_decoder_embeddings": True,
    },
    "mistral": _MISTRAL | {"sliding_window": 4096},
    "mixtral": _MISTRAL | {
        "rms_norm_eps": 1e-5, "num_experts_per_tok": 2, "num_local_experts": 8, "rope_theta": 1_000_000.0,
    },
    "mpt": {
        "vocab_size": 50368, "d_model": 2048, "n_heads": 16, "n_layers": 24, "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5, "attn_config": {}, "tie_word_embeddings": True,
    },
    "olmo2": _LLAMA | {
        "vocab_size": 50304, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 50279, "rms_norm_eps": 1e-5,
    },
    "phi3": _LLAMA | {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "eos_token_id": 32000, "pad_token_id": 32000,
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "qwen3_moe": _QWEN | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
        "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128,
        "norm_topk_prob": False, "mlp_only_layers": (),
    },
    "roberta": _BERT | {"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "t5": {
        "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu", "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True,
    },
}  # fmt: skip

# Keys for which null does not mean the default, but no window, no cap, or as many as heads.
_NULLABLE = frozenset(
    ("sliding_window", "attention_chunk_size", "final_logit_softcapping", "attn_logit_softcapping", "head_dim",
     "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
     "forced_eos_token_id")
)  # fmt: skip
# Keys with whole numbers that are not in the defaults of any class.
_WHOLE = frozenset(("n_inner", "num_decoder_layers", "decoder_vocab_size", "num_key_value_heads", "head_dim"))
_POSITIVE = frozenset(
    ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "n_embd", "n_head",
     "n_heads", "d_model", "d_kv", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
     "sliding_window_pattern",
     "no_rope_layer_interval", "interleave_moe_layer_step", "decoder_sparse_step", "moe_intermediate_size",
     "block_size", "num_random_features")
)  # fmt: skip
_LONGEST = 2**31 - 1  # the longest sequence: MLX counts along an axis in 32 bits
# Lengths in tokens, for which larger values than `_LONGEST` are the same as `_LONGEST`.
_LENGTHS = frozenset(
    ("sliding_window", "attention_chunk_size", "max_window_layers", "original_max_position_embeddings")
)
# Numbers of layers and widths of heads: large values would take long before tensor shapes are checked.
_SMALL = frozenset(
    ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
     "head_dim", "d_kv")
)  # fmt: skip
_MOST = 100_000  # limit of these; the largest models have some hundreds


def complete(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its class's defaults for absent keys, and for null except in `_NULLABLE`.

    Numbers in strings become numbers, and whole floats integers. Raises CheckpointError for a size that is not a whole
    number.
    """
    defaults = DEFAULTS.get(str(raw.get("model_type")), {})
    given = {key: value for key, value in raw.items() if value is not None or key in _NULLABLE}
    return defaults | {key: _number(key, value, defaults.get(key)) for key, value in given.items()}


def _number(key: str, value: Any, default: Any) -> Any:
    """`value` converted to the type of its key; null stays null."""
    if value is None:
        return None
    if key.endswith("_token_id"):
        return int(value) if isinstance(value, str | float) and str(value).removesuffix(".0").isdigit() else value
    if key == "max_position_embeddings" and isinstance(value, int | float) and not 1 <= value <= _LONGEST:
        log.warning("max_position_embeddings of config.json is %s: ignored, no limit", value)
        return None
    if key in _WHOLE or type(default) is int:
        value = whole(key, value)
        if key in _POSITIVE and value < 1:
            raise CheckpointError(f"{key} of config.json is {value}; it must be at least 1")
        if key in _LENGTHS:
            return min(value, _LONGEST)
        if value > (most := _MOST if key in _SMALL else _LONGEST):
            raise CheckpointError(
                f"{key} of config.json is {value}; it must be at most {most}", remedy="download the checkpoint again"
            )
        return value
    if type(default) is bool and type(value) is not bool:
        taken = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if taken is None:
            raise CheckpointError(f"{key} of config.json is {value!r}, not true or false")
        log.warning("%s of config.json is %r: read as %s", key, value, taken)
        return taken
    return _real(key, value) if type(default) is float or key.endswith("_softcapping") else value


def _real(key: str, value: Any) -> Any:
    """A number in a string as a float; other numbers unchanged. Raises CheckpointError otherwise."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise CheckpointError(f"{key} of config.json is {value!r}, not a number") from None
    except OverflowError:
        number = math.inf
    check_real(key, number)
    if not isinstance(value, str):
        return value
    log.warning("%s of config.json is the string %r: read as %s", key, value, number)
    return number


def check_real(key: str, number: float) -> None:
    """Raise CheckpointError for NaN, and for an epsilon that is negative or infinite."""
    is_epsilon = key.endswith(("_eps", "_epsilon"))
    if math.isnan(number) or (is_epsilon and not 0 <= number < math.inf):
        allowed = "a finite number from 0" if is_epsilon else "a number"
        raise CheckpointError(
            f"{key} of config.json is {number}; it must be {allowed}", remedy="download the checkpoint again"
        )


def whole(key: str, value: Any) -> Any:
    """A whole number spelled 20.0 or "20" as an int; None stays. Raises CheckpointError otherwise."""
    if value is None or type(value) is int:
        return value
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise CheckpointError(
            f"{key} of config.json is {value!r}, not a whole number", remedy="download the checkpoint again"
        ) from None
    log.warning("%s of config.json is %r: read as %d", key, value, int(number))
    return int(number)
