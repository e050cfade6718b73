"""Alternative keys in configs, and configs rewritten to the keys that a class of mlx-lm reads.

Three generations are in use: flat keys (transformers 4, mlx-lm's classes), `rope_parameters` and lists with one entry
per layer (transformers 5), and the keys of a model's remote code. `respell` converts any of them to the keys of a class
of mlx-lm. Imports no MLX.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from macllm.errors import CheckpointError
from macllm.files import read_json

# Different keys for the same value.
ALIASES: tuple[tuple[str, ...], ...] = (
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts"),
    ("num_shared_experts", "n_shared_experts", "moe_num_shared_experts"),
    ("n_group", "num_expert_group"),
    ("norm_topk_prob", "moe_renormalize", "route_norm", "norm_expert_weight"),
    ("routed_scaling_factor", "route_scale", "moe_router_scaling_factor", "router_scaling_factor"),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    ("hidden_size", "n_embd", "d_model"),
    ("num_attention_heads", "n_head", "n_heads"),
    ("num_key_value_heads", "num_attention_groups"),
    ("intermediate_size", "block_ff_dim", "ffn_hidden_size", "n_inner"),
    ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "max_seq_length", "n_ctx"),
    ("rms_norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "layer_norm_eps", "norm_eps", "block_norm_eps"),
    ("sliding_window", "sliding_window_size", "attention_window_size"),
    ("tie_word_embeddings", "tie_embedding", "tie_embeddings"),
    ("hidden_act", "hidden_activation", "activation_function"),
    ("attention_bias", "use_qkv_bias", "qkv_bias"),
    ("mlp_layer_types", "mlp_types"),
    ("layer_types", "layers_block_type", "block_types", "attn_types"),
    ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"),
)
# Different names of the same kind of layer; the first is transformers 5's.
LAYER_WORDS: tuple[tuple[str, ...], ...] = (
    ("linear_attention", "mamba", "recurrent", "kda", "conv"),
    ("full_attention", "attention", "global"),
    ("sliding_attention", "sliding_window", "local"),
)
# RoPE parameters outside of `rope_parameters` and `rope_scaling`: the base, the fraction of a head that rotates.
BASES = ("rope_theta", "rotary_emb_base", "rope_freq_constant")
SHARES = ("partial_rotary_factor", "rotary_pct", "rope_pct")
LOCAL_BASES = ("rope_local_base_freq", "swa_rope_theta", "local_rope_theta", "rope_local_theta")
# Other names of RoPE types.
ROPE_TYPES = {"su": "longrope", "deepseek_yarn": "yarn", "telechat3-yarn": "yarn", "mrope": "default"}
ROTATION_KEYS = frozenset({"rope_parameters", "rope_scaling", "rotary_dim", *BASES, *SHARES, *LOCAL_BASES})
_NESTED = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention", "main", "compress")


def class_defaults() -> Mapping[str, Mapping[str, Any]]:
    """Type -> the defaults of transformers' class for keys that its config.json omits."""
    return _table()["types"]


def unread(kind: str) -> frozenset[str]:
    """Keys that mlx-lm's class for this type accepts but ignores."""
    return frozenset(_table()["unread"].get(kind, ()))


@cache
def _table() -> Mapping[str, Any]:
    return read_json(Path(__file__).with_name("class_defaults.json"))


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the defaults of its class for keys that the file omits."""
    kind = str(config.get("model_type"))
    known = {key: value for key, value in class_defaults().get(kind, {}).items() if key not in ROTATION_KEYS}
    same = {name for names in ALIASES for name in names if any(config.get(n) is not None for n in names)}
    return {**{key: value for key, value in known.items() if key not in same}, **_numbers(dict(config))}


def _numbers(value: Any) -> Any:
    """The value with numbers that JSON lacks restored: transformers writes {"__float__": "Infinity"}."""
    if isinstance(value, Mapping):
        tagged = value.get("__float__") if len(value) == 1 else None
        return float(tagged) if isinstance(tagged, str) else {key: _numbers(inner) for key, inner in value.items()}
    return [_numbers(inner) for inner in value] if isinstance(value, list) else value


def rotations(config: Mapping[str, Any]) -> dict[str | None, dict[str, Any]]:
    """Kind of layer (None: all) -> its RoPE parameters in transformers 5's keys; empty without RoPE.

    `rope_scaling` takes precedence over `rope_parameters`; base and rotated fraction come from there, from the flat
    keys, or from the defaults of the model's class (transformers' `convert_rope_params_to_dict`).
    """
    default = class_defaults().get(str(config.get("model_type")), {}).get("rope_parameters") or {}
    given = config.get("rope_scaling") or config.get("rope_parameters")
    base, share, local = first(config, BASES), first(config, SHARES), first(config, LOCAL_BASES)
    if not given and base is None and not default:
        return {}
    scaled = rope_type(default) != "default"
    given = given or (default if base is None or scaled or _nested(default) else {})
    flat_default = {} if _nested(default) else default
    made: dict[str | None, dict[str, Any]] = {}
    kinds = {kind: given[kind] for kind in _nested(given) if given[kind]} or {None: given}
    if local is not None and None in kinds:
        kinds = {"full_attention": given, "sliding_attention": {"rope_theta": local}}
    for kind, parameters in kinds.items():
        own = dict(parameters)
        inner = default.get(kind, {}) if kind in _nested(default) else flat_default
        own.setdefault("rope_theta", inner.get("rope_theta", 10_000.0) if base is None else base)
        if "partial_rotary_factor" not in own:
            factor = inner.get("partial_rotary_factor") if share is None else share
            own |= {} if factor is None else {"partial_rotary_factor": factor}
        own["rope_type"] = rope_type(own)
        own.pop("type", None)
        made[kind] = own
    return made


def rope_type(parameters: Mapping[str, Any]) -> str:
    """The RoPE type in transformers' name."""
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    return ROPE_TYPES.get(name, name)


def _nested(parameters: Mapping[str, Any]) -> list[str]:
    """The kinds of layers with separate RoPE parameters."""
    return [key for key in parameters if key in _NESTED and isinstance(parameters[key], Mapping | None)]


def first(config: Mapping[str, Any], names: Collection[str]) -> Any:
    """The value under the first of these names that has one, or None."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def layer_kinds(config: Mapping[str, Any]) -> list[str] | None:
    """The kind of each layer in transformers' names, from any key that lists or implies it."""
    listed = first(config, ("layer_types", "layers_block_type"))
    if listed is not None:
        return [next((words[0] for words in LAYER_WORDS if kind in words), kind) for kind in listed]
    count = first(config, ("num_hidden_layers", "num_layers"))
    period = config.get("sliding_window_pattern") or config.get("full_attention_interval")
    other = "sliding_attention" if config.get("sliding_window_pattern") else "linear_attention"
    if isinstance(period, str) and count and other == "sliding_attention":
        return [other if period[i % len(period)] == "L" and i != count - 1 else "full_attention" for i in range(count)]
    if isinstance(period, int) and count:
        return ["full_attention" if (i + 1) % period == 0 else other for i in range(count)]
    return None


def respell(config: Mapping[str, Any], reads: Collection[str], ignored: Collection[str] = ()) -> dict[str, Any]:
    """The config for a class that reads the keys `reads` and ignores those of them in `ignored`.

    Raises CheckpointError, naming the key, for a value that such a class would ignore.
    """
    full = completed(config)
    made = dict(full)
    used = set(ROTATION_KEYS)
    for names in ALIASES:
        value = first(full, [n for n in names if n in full])
        for name in names if value is not None else ():
            if name in reads and made.get(name) is None:
                made[name] = value
                used |= set(names)
    for target, (sources, rule) in RULES.items():
        is_set = target in DERIVED_IF_ABSENT and config.get(target) is not None
        if target not in reads or is_set or all(full.get(source) is None for source in sources):
            continue
        value = rule(full)
        if value is not None:
            made[target] = value
            used |= set(sources)
    made |= _respelled_rotations(full, reads)
    _check_read(full, frozenset(reads) - frozenset(ignored), used)
    return made


def _respelled_rotations(config: Mapping[str, Any], reads: Collection[str]) -> dict[str, Any]:
    """RoPE parameters under all of their keys in `reads`."""
    found = rotations(config)
    if not found:
        return {}
    main = found.get(None) or found.get("full_attention") or next(iter(found.values()))
    local = found.get("sliding_attention", main)
    share = main.get("partial_rotary_factor")
    plain = {"rope_theta", "partial_rotary_factor"}
    scaled = main["rope_type"] != "default"
    scaling = {k: v for k, v in main.items() if k not in plain or main["rope_type"] == "proportional"}
    named = {kind: {**parameters, "type": parameters["rope_type"]} for kind, parameters in found.items()}
    values: dict[str, Any] = {
        "rope_parameters": named.get(None, named),
        "rope_scaling": {**scaling, "type": main["rope_type"]} if scaled else None,
        **dict.fromkeys(BASES, main["rope_theta"]),
        **dict.fromkeys(LOCAL_BASES, local["rope_theta"]),
    }
    if share is not None:
        values |= dict.fromkeys(SHARES, share)
    head = config.get("head_dim") or _head(config)
    if config.get("rotary_dim") is None and head:
        values["rotary_dim"] = int(head * (share or 1.0))
    return {key: value for key, value in values.items() if key in reads}


def unread_window(config: Mapping[str, Any], reads: Collection[str]) -> int | None:
    """The attention window that a class ignores: its results are correct up to that many tokens."""
    names = next(names for names in ALIASES if "sliding_window" in names)
    window, kinds = first(config, names), layer_kinds(config)
    off = config.get("use_sliding_window") is False or (kinds is not None and "sliding_attention" not in kinds)
    return None if off or any(name in reads for name in names) else window


def _head(config: Mapping[str, Any]) -> int | None:
    width, heads = first(config, ("hidden_size", "n_embd")), first(config, ("num_attention_heads", "n_head"))
    return width // heads if width and heads else None


def _check_read(config: Mapping[str, Any], reads: Collection[str], used: Collection[str]) -> None:
    """Raise CheckpointError for a value that transformers uses and a class that reads `reads` ignores."""
    kind = str(config.get("model_type"))
    for key, default in {**class_defaults().get(kind, {}), **BUILT_IN.get(kind, {})}.items():
        value = config.get(key, default)
        if key in reads or key in used or key in _SHAPES | _WINDOWS or value == default or value in (None, [], {}):
            continue
        raise CheckpointError(
            f"{key} = {value!r} of config.json is not supported for {config.get('model_type')!r}",
            cause=f"mlx-lm's class always uses {default!r}",
            remedy="a checkpoint of another family, or one without this option",
        )


# Constants in classes of mlx-lm that differ from transformers' defaults.
BUILT_IN: dict[str, dict[str, Any]] = {"nanochat": {"rms_norm_eps": 1e-5}}
# Keys of windows, which `unread_window` handles.
_WINDOWS = frozenset({"max_window_layers", "sliding_window", "use_sliding_window"})
# Keys checked by the shapes of the weights, or handled when weights are loaded.
_SHAPES = frozenset({
    "attention_bias", "head_dim", "intermediate_size", "lm_head_bias", "max_position_embeddings", "mlp_bias",
    "num_key_value_heads", "qk_head_dim", "qkv_bias", "tie_word_embeddings", "use_bias", "n_inner", "v_head_dim",
})  # fmt: skip


def _period(kind: str) -> Callable[[Mapping[str, Any]], int | None]:
    """A rule for the interval n of layers of `kind`. Raises CheckpointError unless they are every nth."""

    def rule(config: Mapping[str, Any]) -> int | None:
        kinds = layer_kinds(config)
        if kinds is None:
            return None
        period = kinds.index(kind) + 1 if kind in kinds else len(kinds) + 1
        if kinds != [kind if (i + 1) % period == 0 else other for i, other in enumerate(kinds)]:
            raise CheckpointError(
                f"layer_types of config.json is not supported for {config.get('model_type')!r}",
                cause=f"mlx-lm's class supports {kind} in every nth layer only",
                remedy="a checkpoint with a regular pattern of layers",
            )
        return period

    return rule


def _indices(kind: str, offset: int = 0) -> Callable[[Mapping[str, Any]], list[int] | None]:
    def rule(config: Mapping[str, Any]) -> list[int] | None:
        kinds = layer_kinds(config)
        return None if kinds is None else [i + offset for i, other in enumerate(kinds) if other == kind]

    return rule


def _dense_first(config: Mapping[str, Any]) -> int:
    """The number of dense layers before the sparse ones. Raises CheckpointError if they are mixed."""
    kinds = list(config["mlp_layer_types"])
    count = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    if "dense" in kinds[count:]:
        raise CheckpointError(
            f"mlp_layer_types of config.json is not supported for {config.get('model_type')!r}",
            cause="mlx-lm's class supports dense layers only before the sparse ones",
            remedy="a checkpoint whose dense layers come first",
        )
    return count


def _dense_only(config: Mapping[str, Any]) -> list[int]:
    return [i for i, kind in enumerate(config["mlp_layer_types"]) if kind == "dense"]


def _of_full_layers(key: str) -> Callable[[Mapping[str, Any]], Any]:
    """A rule for the value of `key` in `per_layer_config`, common to all layers with full attention."""

    def rule(config: Mapping[str, Any]) -> Any:
        if not config.get("per_layer_config"):
            return None
        values = {layer.get(key) for layer in config["per_layer_config"].values()}
        kinds = layer_kinds(config)
        full = None if kinds is None else {i for i, kind in enumerate(kinds) if kind == "full_attention"}
        named = {int(i) for i, layer in config["per_layer_config"].items() if key in layer}
        if len(values - {None}) > 1 or (named and full is not None and named != full):
            raise CheckpointError(
                f"per_layer_config of config.json is not supported for {config.get('model_type')!r}",
                cause=f"mlx-lm's class has one {key} for all layers with full attention",
                remedy="a checkpoint with equal layers of each kind",
            )
        return next(iter(values - {None}), None)

    return rule


def _linear_attention(config: Mapping[str, Any]) -> dict[str, Any]:
    """Kimi's config of linear attention; layer numbers count from 1."""
    return {
        "kda_layers": _indices("linear_attention", 1)(config),
        "full_attn_layers": _indices("full_attention", 1)(config),
        "num_heads": config.get("linear_num_heads"),
        "head_dim": config.get("linear_head_dim"),
        "short_conv_kernel_size": config.get("linear_conv_kernel_dim", config.get("short_conv_kernel_size")),
    }


def _is(key: str, word: str) -> Callable[[Mapping[str, Any]], list[int]]:
    return lambda config: [int(kind == word) for kind in config[key]]


# Key -> the keys that it can be derived from, and the rule; a rule that cannot derive it raises or returns None.
RULES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Any]]] = {
    "full_attention_interval": (("layer_types",), _period("full_attention")),
    "sliding_window_pattern": (("layer_types",), _period("full_attention")),
    "layer_group_size": (("layer_types",), _period("full_attention")),
    "full_attn_idxs": (("layer_types",), _indices("full_attention")),
    "layer_types": (("sliding_window_pattern", "full_attention_interval"), layer_kinds),
    "hybrid_layer_pattern": (("layer_types",), _is("layer_types", "sliding_attention")),
    "linear_attn_config": (("layer_types", "linear_num_heads", "linear_head_dim"), _linear_attention),
    "first_k_dense_replace": (("mlp_layer_types",), _dense_first),
    "mlp_only_layers": (("mlp_layer_types",), _dense_only),
    "decoder_sparse_step": (("mlp_layer_types",), lambda config: 1),
    "is_moe_layer": (("mlp_layer_types",), _is("mlp_layer_types", "sparse")),
    "global_head_dim": (("per_layer_config",), _of_full_layers("head_dim")),
    "num_global_key_value_heads": (("per_layer_config",), _of_full_layers("num_key_value_heads")),
    "no_rope_layers": (
        ("no_rope_layer_interval",),
        lambda config: [
            int((i + 1) % config["no_rope_layer_interval"] != 0) for i in range(config["num_hidden_layers"])
        ],
    ),
}
# Keys that are not derived if the config has them.
DERIVED_IF_ABSENT = frozenset({"layer_types", "no_rope_layers", "linear_attn_config", "global_head_dim"})
