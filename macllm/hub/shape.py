"""Context, cache and quantization of a language model, from its config.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Kinds of layers whose state does not grow with the context.
_CONSTANT = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "moe", "mlp")
# Keys of models with such layers, or with compressed keys; without `layer_types` their cache is not known.
_OTHER_CACHES = ("mamba", "ssm", "linear_", "kv_lora", "state_size", "hybrid_override", "block_types", "conv_L_cache")
# Layers with a window by family, if the config does not say: every nth layer is full.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}
# Values that config files of these families leave out, in transformers' classes.
_GEMMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {**_GEMMA, "max_position_embeddings": 8192},
    "gemma3": {**_GEMMA, "max_position_embeddings": 131_072},
    "gemma3_text": {**_GEMMA, "max_position_embeddings": 131_072},
    "qwen3": {"head_dim": 128},
    "qwen3_moe": {"head_dim": 128},
}
# Families whose max_position_embeddings is the length after scaling.
_SCALED_ALREADY = ("gemma3", "gemma3_text", "phi3")
_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float8_e4m3fn": "fp8"}
_LENGTHS = (
    "model_max_length",
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_head_kv")


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of a layer: `values` numbers for each of the newest `window` tokens (None: all)."""

    values: int
    window: int | None


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; None or "" where its config does not say.

    `cache` has the caches of its layers; None for an unknown kind.
    """

    family: str = ""
    context_tokens: int | None = None
    layers: int | None = None
    quantization: str = ""
    cache: tuple[LayerCache, ...] | None = None
    has_experts: bool = False

    def cache_bytes(self, tokens: int, value_bytes: int) -> int:
        """Bytes of the cache after `tokens` tokens, if a number takes `value_bytes`; 0 for an unknown cache."""
        return sum(each.values * min(tokens, each.window or tokens) for each in self.cache or ()) * value_bytes


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Wrong types count as missing."""
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, Mapping) else config
    family = config.get("model_type")
    text = {**_DEFAULTS.get(str(text.get("model_type")), {}), **{k: v for k, v in text.items() if v is not None}}
    experts = (_whole(text, (key,)) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return ModelShape(
        family=family if isinstance(family, str) else "",
        context_tokens=_context(text),
        layers=_whole(text, _LAYERS),
        quantization=_quantization(config, text),
        cache=_cache(text),
        has_experts=any(count is not None and count > 1 for count in experts),
    )


def _context(config: Mapping[str, Any]) -> int | None:
    """The context in tokens, with RoPE scaling, as the families compute it."""
    length = _whole(config, _LENGTHS)
    given = config.get("rope_parameters") or config.get("rope_scaling")
    if length is None or not isinstance(given, Mapping) or config.get("model_type") in _SCALED_ALREADY:
        return length
    scaled: list[int] = []
    for each in [value for value in given.values() if isinstance(value, Mapping)] or [given]:
        kind, factor = each.get("rope_type") or each.get("type"), each.get("factor")
        if kind in ("yarn", "linear", "dynamic") and isinstance(factor, int | float) and 0 < factor < math.inf:
            before = _whole({**config, **each}, ("original_max_position_embeddings",)) if kind == "yarn" else None
            scaled.append(int((before or length) * factor))
    return max(scaled, default=length)


def _cache(config: Mapping[str, Any]) -> tuple[LayerCache, ...] | None:
    """The caches of all layers; None if they cannot be told from the config."""
    count, heads = _whole(config, _LAYERS), _whole(config, _HEADS)
    key_heads, width = _whole(config, _KEY_HEADS) or heads, _whole(config, ("hidden_size", "n_embd", "d_model"))
    head_dim = _whole(config, ("head_dim",)) or (width // heads if width and heads else None)
    kinds = config.get("layer_types")
    listed = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)
    if not count or not key_heads or not head_dim or _whole(config, ("kv_lora_rank",)):
        return None
    if not listed and any(key.startswith(_OTHER_CACHES) and config[key] for key in config):
        return None
    named = kinds if isinstance(kinds, list) and listed else _implied(config, count)
    if len(named) != count:
        return None
    values = 2 * key_heads * head_dim
    windows = {
        "sliding_attention": _whole(config, ("sliding_window",)),
        "chunked_attention": _whole(config, ("attention_chunk_size",)),
    }
    return tuple(LayerCache(values, windows.get(kind)) for kind in named if kind not in _CONSTANT)


def _implied(config: Mapping[str, Any], count: int) -> list[str]:
    """The kinds of layers of a config that does not list them. A doubtful layer counts as full."""
    window, period = _whole(config, ("sliding_window",)), config.get("sliding_window_pattern")
    if not isinstance(period, int):
        period = _PERIODS.get(str(config.get("model_type")))
    if period and window:
        return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(count)]
    windowed = window and config.get("model_type") in ("mistral", "mixtral", "phi3", "starcoder2")
    return ["sliding_attention" if windowed else "full_attention"] * count


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """The kind of weights in a few characters: 4-bit, mxfp4, gptq, bf16."""
    for part in (config, text):
        for key in ("quantization", "quantization_config"):
            found = part.get(key)
            if not isinstance(found, Mapping):
                continue
            mode, method, bits = found.get("mode"), found.get("quant_method"), _whole(found, ("bits",))
            if isinstance(method, str) and method:
                return method
            if isinstance(mode, str) and mode not in ("", "affine"):
                return mode
            if bits is not None:
                return f"{bits}-bit"
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return _DTYPES.get(str(dtype).removeprefix("torch."), "") if dtype else ""


def _whole(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first positive whole number under one of `keys`."""
    for key in keys:
        value = config.get(key)
        if type(value) is int and 0 < value < 2**40:
            return value
    return None
