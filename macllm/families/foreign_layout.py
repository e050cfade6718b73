"""Fixes for single classes of mlx-lm: config keys, tensor layouts, known faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.errors import CheckpointError

from . import spellings

# Types that mlx-lm loads but computes wrongly, or cannot load, and the reason.
KNOWN_WRONG: dict[str, str] = {
    "bailing_hybrid": "mlx-lm's class of that name has Lightning attention, transformers' has Kimi's delta rule",
    "minimax": "mlx-lm's class of that name is MiniMax M2's, without Lightning attention",
    "olmo_hybrid": "mlx-lm's class gives wrong logits",
    "olmo": "mlx-lm's class needs the package ai2-olmo and supports only that package's checkpoints",
}


def respelled_for(
    kind: str, config: Mapping[str, Any], reads: Collection[str], ignored: Collection[str] = ()
) -> dict[str, Any]:
    """`spellings.respell`, with the exceptions for single classes."""
    own = _OWN_MEANING.get(kind, frozenset())
    given = {key: config[key] for key in config if key not in own}
    made = spellings.respell(given, frozenset(reads) - own, ignored)
    if kind in _ONE_UNSCALED and spellings.first(made, ("num_experts_per_tok", "num_experts_per_token")) == 1:
        raise CheckpointError(
            f"num_experts_per_tok = 1 of config.json is not supported for {kind!r}",
            cause="mlx-lm's class renormalizes weights only for several experts",
            remedy="a checkpoint of another family, or one with several experts per token",
        )
    if kind in _WORDS and made.get("layer_types"):
        made["layer_types"] = [_WORDS[kind].get(word, word) for word in made["layer_types"]]
    return made | (_PARTICULAR[kind](config, made) if kind in _PARTICULAR else {})


# Keys with another meaning in a class than in `spellings`, computed by `_PARTICULAR`.
_OWN_MEANING = {"exaone4": frozenset({"sliding_window_pattern"})}
# Types whose class does not renormalize the weight of a single expert; DeepSeek's router is fixed in foreign_fixes.
_ONE_UNSCALED = frozenset({"afmoe", "kimi_linear"})
_MAMBA = {"linear_attention": "mamba", "full_attention": "attention"}
_WORDS = {"granitemoehybrid": _MAMBA}


def _exaone4(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    kinds = spellings.layer_kinds(config)
    pattern = "".join("L" if kind == "sliding_attention" else "G" for kind in kinds) if kinds else None
    return {"sliding_window_pattern": pattern or made.get("sliding_window_pattern"), "head_dim": _head(made)}


def _kimi_linear(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Its layers have no RoPE, which transformers 5's config implies."""
    return {"rope_theta": made.get("rope_theta") or 10_000.0, "mla_use_nope": made.get("mla_use_nope", True)}


def _head(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _mimo(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the remote code's config, which transformers renames or implies."""
    sinks = "attention_sink_bias"
    implied = {
        "moe_layer_freq": [int(kind == "sparse") for kind in config.get("mlp_layer_types") or ()],
        "add_swa_attention_sink_bias": config.get(f"add_swa_{sinks}", True),
        "add_full_attention_sink_bias": config.get(f"add_full_{sinks}", False),
        "n_shared_experts": None,
        **_DEEPSEEK_ROUTER,
        "swa_num_key_value_heads": 2 * made["num_key_value_heads"],
        **{f"swa_{key}": made[key] for key in ("num_attention_heads", "head_dim", "v_head_dim")},
    }
    return {key: value for key, value in implied.items() if key not in config}


def _minicpm3(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Its class requires RoPE scaling: factors of 1 for a config without it."""
    if made.get("rope_scaling"):
        return {}
    length = made["max_position_embeddings"]
    return {"rope_scaling": {"short_factor": 1.0, "long_factor": 1.0, "original_max_position_embeddings": length}}


def _absent(**values: Any) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """Values that a class requires and transformers' config omits."""
    return lambda config, made: {key: value for key, value in values.items() if made.get(key) is None}


_DEEPSEEK_ROUTER = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
_PARTICULAR: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "apertus": _absent(mlp_bias=False, post_norm=False, qk_norm=True),
    "deepseek_v2": _absent(rope_scaling={"factor": 1.0}),
    "exaone4": _exaone4,
    "glm_moe_dsa": _absent(moe_layer_freq=1, **_DEEPSEEK_ROUTER),
    "kimi_linear": _kimi_linear,
    "lfm2": lambda config, made: {"block_dim": made.get("block_dim") or made["hidden_size"]},
    "longcat_flash": _absent(
        attention_method="MLA", zero_expert_type="identity", mla_scale_q_lora=True, mla_scale_kv_lora=True
    ),
    "mimo_v2_flash": _mimo,
    "minicpm3": _minicpm3,
    "minimax_m2": _absent(shared_intermediate_size=0),
    "qwen3_vl_moe_text": _absent(norm_topk_prob=True),
    "solar_open": _absent(first_k_dense_replace=0, partial_rotary_factor=1.0),
}


# Tensors of a multimodal checkpoint outside of its language model.
_OTHER_MODALITIES = re.compile(
    r"(model\.)?(visual|vision_\w+|audio_\w+|embed_(vision|audio)|multi_modal_projector|mm_projector|patch_merge_mlp)\."
)


def rearranged(
    weights: dict[str, mx.array],
    model: nn.Module,
    config: Mapping[str, Any],
    sanitize: Callable[[dict[str, mx.array]], dict[str, mx.array]],
) -> dict[str, mx.array]:
    """The tensors under the names of mlx-lm's class, from any layout of the checkpoint.

    Raises CheckpointError for a separate head that the class would ignore.
    """
    kind = config.get("model_type")
    weights = {
        name: array
        for name, array in weights.items()
        if not _OTHER_MODALITIES.match(name) and not name.endswith("rotary_emb.inv_freq")
    }
    if kind in _TENSORS:
        weights = _TENSORS[kind](weights, config)
    given = dict(weights)
    made = sanitize(weights)
    expected = dict(tree_flatten(model.parameters()))  # after sanitize, which in some classes removes the head
    made |= {name: value for name, value in _filled(given, expected, config) if name not in made}
    if config.get("surely_tied"):
        _table_of_head(given, expected, made)
    head = next((name for name in expected if name.endswith("lm_head.weight")), None)
    if head is not None and head not in made and config.get("tie_word_embeddings") is not False:
        table = next((name for name in made if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
        for part in ("weight", "scales", "biases"):
            source = table.replace("weight", part) if table else ""
            if source in made:
                made[head.replace("weight", part)] = made[source]
    _check_head(given, expected, made)
    return made


def _table_of_head(given: dict[str, mx.array], expected: dict[str, Any], made: dict[str, mx.array]) -> None:
    """Fill the token embedding of tied matrices that are stored only under the head's name."""
    table = next((name for name in expected if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    head = next((name for name in given if name.endswith("lm_head.weight")), None)
    if table is None or head is None or table in made:
        return
    for part in ("weight", "scales", "biases"):
        source, target = head.removesuffix("weight") + part, table.removesuffix("weight") + part
        if source in given:
            made[target] = given[source]
        if source in made and source not in expected:
            del made[source]


def _filled(
    given: dict[str, mx.array], expected: dict[str, Any], config: Mapping[str, Any]
) -> Iterator[tuple[str, mx.array]]:
    """Tensors that `sanitize` drops, and zeros for unused parameters of a class."""
    kind, shared = config.get("model_type"), config.get("num_kv_shared_layers") or 0
    first_shared = (config.get("num_hidden_layers") or 0) - shared
    for name, array in expected.items():
        if name.endswith(".selection_bias"):  # of ERNIE's experts, see foreign_fixes
            source = name.replace(".selection_bias", ".moe_statics.e_score_correction_bias")
            yield name, given[source].flatten() if source in given else mx.zeros(array.shape)
        layer = re.search(r"layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)", name)
        if kind == "gemma3n_text" and shared and layer and int(layer[1]) >= first_shared:
            yield name, mx.zeros(array.shape)  # these layers use the keys and values of others


def _check_head(given: dict[str, mx.array], expected: dict[str, Any], made: dict[str, mx.array]) -> None:
    """Raise CheckpointError if the checkpoint's head is neither used nor equal to its token embedding."""
    head = next((name for name in given if name.endswith("lm_head.weight")), None)
    if head is None or any(name.endswith("lm_head.weight") for name in (*expected, *made)):
        return
    table = next((n for n in given if n.endswith(("embed_tokens.weight", "embeddings.weight", "wte.weight"))), None)
    if table is not None and (given[table].shape != given[head].shape or not mx.array_equal(given[table], given[head])):
        raise CheckpointError(
            f"{head} differs from {table}",
            cause="mlx-lm's class computes logits with the token embedding and ignores the head",
            remedy="a checkpoint of another family, or one with tied embeddings",
        )


Tensors = dict[str, mx.array]
Rearrange = Callable[[Tensors, Mapping[str, Any]], Tensors]


def _falcon_h1(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The class ignores two multipliers: fold them into the matrices, unless mlx-lm wrote the checkpoint."""
    conv = weights.get("model.layers.0.mamba.conv1d.weight")
    if conv is None or conv.shape[-1] <= conv.shape[1]:
        return weights
    factors = {
        "k_proj.weight": config.get("key_multiplier", 1.0),
        "v_proj.weight": config.get("attention_in_multiplier", 1.0),
    }
    return {
        name: array * next((factor for end, factor in factors.items() if name.endswith(end)), 1.0)
        for name, array in weights.items()
    }


def _longcat(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Drop the unused matrices of identity experts."""
    first, last = config["n_routed_experts"], config["n_routed_experts"] + config.get("zero_expert_num", 0)
    unused = tuple(f".experts.{i}." for i in range(first, last))
    return {name: array for name, array in weights.items() if not any(part in name for part in unused)}


def _gpt_oss(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Experts of transformers 5 as 16-bit stacks: (E, in, out), gate and up interleaved along out."""
    made: dict[str, mx.array] = {}
    for name, array in weights.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            name, array = f"{name}.weight", array.swapaxes(1, 2)
        made[name] = array
    return made


def _gpt_bigcode(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Without multi-query attention, query, key and value rows are grouped by head: regroup them."""
    if config.get("multi_query") is not False:
        return weights
    heads = config.get("n_head") or config.get("num_attention_heads") or 12
    made = dict(weights)
    for name, array in weights.items():
        if ".attn.c_attn." in name:
            parts = array.reshape(heads, 3, -1, *array.shape[1:])
            made[name] = parts.swapaxes(0, 1).reshape(array.shape)
    return made


def _renamed(*pairs: tuple[str, str]) -> Rearrange:
    """A function that renames tensors: each pattern is replaced, in order."""

    def rename(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
        made: dict[str, mx.array] = {}
        for name, array in weights.items():
            for pattern, other in pairs:
                name = re.sub(pattern, other, name)
            made[name] = array
        return made

    return rename


def _stacked(weights: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Stack experts that transformers saves one by one."""
    made, experts = {}, {}
    for name, array in weights.items():
        if found := re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(\w+)\.weight", name):
            experts.setdefault((found[1], found[3]), {})[int(found[2])] = array
        else:
            made[name] = array
    for (prefix, part), parts in experts.items():
        made[f"{prefix}.switch_mlp.{part}.weight"] = mx.stack([parts[i] for i in sorted(parts)])
    return made


_TENSORS: dict[Any, Rearrange] = {
    "falcon_h1": _falcon_h1,
    "longcat_flash": _longcat,
    "gemma3n_text": _renamed((r"^model\.(?!language_model\.)", "model.language_model.")),
    "gpt_bigcode": _gpt_bigcode,
    "gpt_oss": _gpt_oss,
    "kimi_linear": _renamed((r"block_sparse_moe\.(gate|up|down)_proj\.", r"mlp.\1_proj.")),
    "nanochat": _renamed(
        (r"^model\.embed_tokens", "transformer.wte"),
        (r"^model\.layers", "transformer.h"),
        (r"self_attn\.([qkv])_proj", r"attn.c_\1"),
        (r"self_attn\.o_proj", "attn.c_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    ),
    "olmo_hybrid": _renamed(
        (r"\.attention_layer_norm\.", ".input_layernorm."),
        (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."),
    ),
    "qwen3_5_moe": _stacked,
    "qwen3_5_moe_text": _stacked,
}
