"""Sizes of the caches of a model's layers, from its config.json alone.

They are those that macllm's families and mlx-lm's classes allocate, which for some models is more than a paper says: a
class may keep whole keys and values where others keep their compressed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_head_kv")
_WIDTH = ("hidden_size", "n_embd", "d_model")
# Layers with a window by family, if the config does not say: every nth layer is full.
_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6}
_ALWAYS_WINDOWED = ("mistral", "mixtral", "phi3", "starcoder2")
# Multi-head latent attention by model type: classes that keep the compressed keys, those that keep them beside the keys
# of an indexer, and those that keep whole keys and values.
_COMPRESSED = ("deepseek_v3", "kimi_k2", "kimi_linear", "glm4_moe_lite", "mistral4", "longcat_flash")
_INDEXED = ("deepseek_v32", "glm_moe_dsa")
_WHOLE = ("deepseek_v2", "minicpm3", "youtu", "youtu_llm")
_ATTENTIONS_PER_LAYER = {"longcat_flash": 2}
# Kinds of layers as configs name them -> the names here; those of transformers' `layer_types` stay.
_KINDS = {
    "attention": "full_attention", "*": "full_attention", "indexed_attention": "full_attention", "M": "mamba",
    "mamba2": "mamba", "moe": "none", "mlp": "none", "-": "none", "E": "none",
}  # fmt: skip
_ALL_OF_ONE_KIND = {"mamba": "mamba", "falcon_mamba": "mamba", "mamba2": "mamba", "falcon_h1": "both", "rwkv7": "rwkv"}
_OF_OTHER_KINDS = ("iquestloopcoder", "nanbeige", "minimax_m3", "minimax_m3_vl", "deepseek_v41", "plamo2")
_SHARE_KEYS = ("gemma3n", "gemma4")  # first letters of types whose last layers keep no keys of their own
# Keys of models with other layers than attention; without a list of the layers their cache is not known.
_OTHER_CACHES = ("mamba", "ssm", "linear_", "state_size", "block_types", "conv_L_cache", "attention_kind")


@dataclass(frozen=True)
class LayerCache:
    """A part of a layer's cache: `values` numbers for each of the newest `window` tokens (None: all).

    A state of constant size is a window of one token. `value_bytes` is None for numbers of the model's own type.
    """

    values: int
    window: int | None
    value_bytes: int | None = None

    def size_bytes(self, tokens: int, value_bytes: int) -> int:
        """Bytes after `tokens` tokens, if a number of the model's own type takes `value_bytes`."""
        return self.values * min(tokens, self.window or tokens) * (self.value_bytes or value_bytes)


def layer_caches(config: Config) -> tuple[LayerCache, ...] | None:
    """The caches of all layers of a language model; None if its config does not tell them."""
    count = whole(config, LAYERS) or 0
    kinds = _kinds(config, count)
    if not kinds or (count and len(kinds) != count):
        return None
    if str(config.get("model_type")).startswith(_SHARE_KEYS):
        kinds = kinds[: len(kinds) - (whole(config, ("num_kv_shared_layers",)) or 0)]
    found: list[LayerCache] = []
    for at, kind in enumerate(kinds):
        parts = _layer(config, kind, at)
        if parts is None:
            return None
        found += parts
    return tuple(found)


def whole(config: Config, keys: tuple[str, ...]) -> int | None:
    """The first positive whole number under one of `keys`."""
    for key in keys:
        value = config.get(key)
        if type(value) is int and 0 < value < 2**40:
            return value
    return None


# Kinds of layers


def _kinds(config: Config, count: int) -> list[str]:
    """The kind of every layer; [] if the config does not tell."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    pattern, windows = config.get("hybrid_override_pattern"), config.get("hybrid_layer_pattern")
    if isinstance(pattern, str):
        listed = list(pattern)
    if isinstance(listed, list) and all(isinstance(kind, str) for kind in listed):
        return [_KINDS.get(kind, kind) for kind in listed]
    if listed is not None and listed != []:
        return []
    if isinstance(windows, list):
        return ["sliding_attention" if each == 1 else "full_attention" for each in windows]
    if kind := _ALL_OF_ONE_KIND.get(str(config.get("model_type"))):
        return [kind] * count
    return _mixed(config, count) or _implied(config, count)


def _mixed(config: Config, count: int) -> list[str]:
    """The kinds of the layers of a hybrid that gives the places of its attention layers; [] for others."""
    period, offset = whole(config, ("attn_layer_period",)), config.get("attn_layer_offset")
    if period and isinstance(offset, int):
        return ["full_attention" if at % period == offset else "mamba" for at in range(count)]
    if period := whole(config, ("full_attention_interval",)):
        return ["full_attention" if (at + 1) % period == 0 else "linear_attention" for at in range(count)]
    full = config.get("full_attn_idxs")
    if isinstance(full, list):
        return ["full_attention" if at in full else "conv" for at in range(count)]
    linear = part(config, "linear_attn_config").get("kda_layers")  # counted from one
    if isinstance(linear, list):
        return ["linear_attention" if at + 1 in linear else "full_attention" for at in range(count)]
    cycle = config.get("block_types")
    if isinstance(cycle, list) and cycle and set(cycle) <= {"recurrent", "attention"}:
        chosen = [cycle[at % len(cycle)] for at in range(count)]
        return ["recurrent" if kind == "recurrent" else "sliding_attention" for kind in chosen]
    return []


def _implied(config: Config, count: int) -> list[str]:
    """The kinds of layers of a config that does not list them. A doubtful layer counts as full."""
    doubtful = config.get("model_type") in _OF_OTHER_KINDS
    if doubtful or any(key.startswith(_OTHER_CACHES) and config[key] for key in config):
        return []
    window, period = whole(config, ("sliding_window",)), config.get("sliding_window_pattern")
    if not isinstance(period, int):
        period = _PERIODS.get(str(config.get("model_type")))
    if period and window:
        return ["full_attention" if (at + 1) % period == 0 else "sliding_attention" for at in range(count)]
    windowed = window and config.get("model_type") in _ALWAYS_WINDOWED
    return ["sliding_attention" if windowed else "full_attention"] * count


# Caches of one layer


def _layer(config: Config, kind: str, at: int) -> list[LayerCache] | None:
    """The caches of layer `at`; None if its config does not tell them."""
    match kind:
        case "none":
            return []
        case "full_attention" | "sliding_attention" | "chunked_attention":
            return _attention(config, kind, at)
        case "both":
            attention, state = _attention(config, "full_attention", at), _state_space(config)
            return None if attention is None or state is None else [*state, *attention]
        case "mamba":
            return _state_space(config)
        case "linear_attention":
            return _delta(config) or _kimi_delta(config) or _state_space(config)
        case "conv":
            width, held = whole(config, ("conv_dim", *_WIDTH)), whole(config, ("conv_L_cache",))
            return [LayerCache(width * (held - 1), 1)] if width and held else None
        case "recurrent":
            width, held = whole(config, ("lru_width", *_WIDTH)), whole(config, ("conv1d_width",))
            return [LayerCache(width * held, 1)] if width and held else None
        case "rwkv":
            width, head = whole(config, _WIDTH), whole(config, ("head_dim", "head_size"))
            return [LayerCache(width * (head + 2), 1)] if width and head else None
        case _:
            return None


def _attention(config: Config, kind: str, at: int) -> list[LayerCache] | None:
    family = str(config.get("model_type"))
    if whole(config, ("kv_lora_rank",)):
        return _latent(config, family)
    windowed = kind != "full_attention"
    heads, width = whole(config, _HEADS), whole(config, _WIDTH)
    key_heads = whole(config, _KEY_HEADS) or heads
    head_dim = whole(config, ("head_dim",)) or (width // heads if width and heads else None)
    if family == "gpt_bigcode" and config.get("multi_query") is not False:
        key_heads = 1
    if family.startswith("gemma4") and not windowed:
        own = part(part(config, "per_layer_config"), str(at))
        head_dim = whole(own, ("head_dim",)) or whole(config, ("global_head_dim",)) or head_dim
        shared = whole(config, ("num_global_key_value_heads",)) if config.get("attention_k_eq_v") else None
        key_heads = whole(own, ("num_key_value_heads",)) or shared or key_heads
    value_dim = None
    if family.startswith("mimo_v2"):
        value_dim = whole(config, ("v_head_dim",))
        if windowed:
            key_heads = whole(config, ("swa_num_key_value_heads",)) or heads
            head_dim = whole(config, ("swa_head_dim",)) or head_dim
            value_dim = whole(config, ("swa_v_head_dim",)) or value_dim
    if not key_heads or not head_dim:
        return None
    window = {
        "sliding_attention": whole(config, ("sliding_window", "sliding_window_size", "attention_window_size")),
        "chunked_attention": whole(config, ("attention_chunk_size",)),
    }.get(kind)
    return [LayerCache(key_heads * (head_dim + (value_dim or head_dim)), window)]


def _latent(config: Config, family: str) -> list[LayerCache] | None:
    """Keys and values of multi-head latent attention."""
    rank, rotary = whole(config, ("kv_lora_rank",)), whole(config, ("qk_rope_head_dim",))
    heads, index = whole(config, _HEADS), whole(config, ("index_head_dim",))
    plain, value = whole(config, ("qk_nope_head_dim",)), whole(config, ("v_head_dim",))
    if not rank or not rotary:
        return None
    if family in _COMPRESSED:
        return [LayerCache(rank + rotary, None)] * _ATTENTIONS_PER_LAYER.get(family, 1)
    if family in _INDEXED and index:
        return [LayerCache(rank + rotary, None), LayerCache(2 * index, None)]
    if family in _WHOLE and heads and plain and value:
        return [LayerCache(heads * (plain + rotary + value), None)]
    return None


def _state_space(config: Config) -> list[LayerCache] | None:
    """The newest inputs of a Mamba layer's convolution, and its state."""
    kernel = whole(config, ("mamba_d_conv", "conv_kernel", "d_conv"))
    state = whole(config, ("mamba_d_state", "ssm_state_size", "state_size", "d_state"))
    heads = whole(config, ("mamba_n_heads", "mamba_num_heads"))
    head = whole(config, ("mamba_d_head", "mamba_head_dim"))
    if config.get("model_type") == "mamba2":
        heads, head = whole(config, ("num_heads",)), whole(config, ("head_dim",))
    groups = whole(config, ("mamba_n_groups", "n_groups"))
    if not kernel or not state:
        return None
    if heads and head and groups:
        channels = heads * head + 2 * groups * state
        return [LayerCache((kernel - 1) * channels, 1), LayerCache(heads * head * state, 1, 4)]
    width, expand = whole(config, _WIDTH), whole(config, ("mamba_expand",))
    channels = expand * width if width and expand else whole(config, ("intermediate_size", "d_inner"))
    if channels is None:
        return None
    return [LayerCache((kernel - 1) * channels, 1), LayerCache(channels * state, 1, 4)]


def _delta(config: Config) -> list[LayerCache] | None:
    """The newest inputs of a gated delta rule's convolution, and its state."""
    kernel = whole(config, ("linear_conv_kernel_dim",))
    key_heads, value_heads = whole(config, ("linear_num_key_heads",)), whole(config, ("linear_num_value_heads",))
    key, value = whole(config, ("linear_key_head_dim",)), whole(config, ("linear_value_head_dim",))
    if not kernel or not key_heads or not value_heads or not key or not value:
        return None
    channels = 2 * key_heads * key + value_heads * value
    return [LayerCache((kernel - 1) * channels, 1), LayerCache(value_heads * value * key, 1, 4)]


def _kimi_delta(config: Config) -> list[LayerCache] | None:
    """The same of Kimi's delta attention, which has three convolutions."""
    own = part(config, "linear_attn_config") or {
        "num_heads": config.get("linear_num_heads"),
        "head_dim": config.get("linear_head_dim"),
        "short_conv_kernel_size": config.get("linear_conv_kernel_dim"),
    }
    heads, head = whole(own, ("num_heads",)), whole(own, ("head_dim",))
    kernel = whole(own, ("short_conv_kernel_size",))
    if not heads or not head or not kernel:
        return None
    return [LayerCache(3 * (kernel - 1) * heads * head, 1), LayerCache(heads * head * head, 1, 4)]


def part(config: Config, name: str) -> Config:
    """The object under `name` in a config; {} if absent or not an object."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
