"""Context, cache and quantization of a language model, from its config.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cache_layout import LAYERS, LayerCache, layer_caches, whole

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
        return sum(each.size_bytes(tokens, value_bytes) for each in self.cache or ())


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Wrong types count as missing."""
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, Mapping) else config
    family = config.get("model_type")
    text = {**_DEFAULTS.get(str(text.get("model_type")), {}), **{k: v for k, v in text.items() if v is not None}}
    experts = (whole(text, (key,)) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return ModelShape(
        family=family if isinstance(family, str) else "",
        context_tokens=_context(text),
        layers=whole(text, LAYERS),
        quantization=_quantization(config, text),
        cache=layer_caches(text),
        has_experts=any(count is not None and count > 1 for count in experts),
    )


def _context(config: Mapping[str, Any]) -> int | None:
    """The context in tokens, with RoPE scaling, as the families compute it."""
    length = whole(config, _LENGTHS)
    given = config.get("rope_parameters") or config.get("rope_scaling")
    if length is None or not isinstance(given, Mapping) or config.get("model_type") in _SCALED_ALREADY:
        return length
    scaled: list[int] = []
    for each in [value for value in given.values() if isinstance(value, Mapping)] or [given]:
        kind, factor = each.get("rope_type") or each.get("type"), each.get("factor")
        if kind in ("yarn", "linear", "dynamic") and isinstance(factor, int | float) and 0 < factor < math.inf:
            before = whole({**config, **each}, ("original_max_position_embeddings",)) if kind == "yarn" else None
            scaled.append(int(round((before or length) * factor, 6)))
    return max(scaled, default=length)


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """The kind of weights in a few characters: 4-bit, mxfp4, gptq, bf16."""
    for part in (config, text):
        for key in ("quantization", "quantization_config"):
            found = part.get(key)
            if not isinstance(found, Mapping):
                continue
            mode, method, bits = found.get("mode"), found.get("quant_method"), whole(found, ("bits",))
            if isinstance(method, str) and method:
                return method
            if isinstance(mode, str) and mode not in ("", "affine"):
                return mode
            if bits is not None:
                return f"{bits}-bit"
    dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return _DTYPES.get(str(dtype).removeprefix("torch."), "") if dtype else ""
