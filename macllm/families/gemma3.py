"""Gemma 3 (text): five local layers to a global one, each kind with its own RoPE. arXiv:2503.19786."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import Bidirectional, Causal, DecoderSpec, Local, MaskSpec, QKNormSpec, Sliding
from macllm.weights.keymap import Drop, KeyMap

from . import gemma2, llama
from .config import Config, layer_types, rope, rope_parameters


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    # Scores are not capped: transformers' class reads attn_logit_softcapping but does not use it.
    normed = QKNormSpec(norm=gemma2.norm(config), over="head")
    attention = replace(gemma2.attention(config), qk_norm=normed, logit_softcap=None)
    parameters = {"full_attention": rope_parameters(config, "full_attention"), "sliding_attention": _local(config)}
    kinds = {
        kind: replace(attention, mask=mask, rope=rope(config, attention.head_dim, parameters[kind]))
        for kind, mask in _masks(config).items()
    }
    every, count = config.get("sliding_window_pattern", 6), config["num_hidden_layers"]
    pattern = layer_types(
        config, ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)], kinds
    )
    decoder = gemma2.decoder(config, tuple(gemma2.layer(config, kinds[kind]) for kind in pattern))
    # In this family max_position_embeddings includes RoPE scaling.
    return replace(decoder, context_length=config.get("max_position_embeddings"))


def _masks(config: Config) -> dict[str, MaskSpec]:
    width = config["sliding_window"]
    if config.get("use_bidirectional_attention"):
        return {"full_attention": Bidirectional(), "sliding_attention": Local(width // 2 + 1)}
    return {"full_attention": Causal(), "sliding_attention": Sliding(width)}


def _local(config: Config) -> dict:
    """RoPE of local layers: a separate base and no scaling, unless the config has parameters for them."""
    named = (config.get("rope_parameters") or {}).get("sliding_attention")
    parameters = (
        rope_parameters(config, "sliding_attention") if named else {**rope_parameters(config), "rope_type": "default"}
    )
    if not (named and "rope_theta" in named):
        parameters["rope_theta"] = config.get("rope_local_base_freq", 10_000.0)
    return parameters


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config; vision tensors are dropped."""
    keymap = gemma2.keys(config)
    vision = tuple(
        Drop(f"{prefix}{part}.**") for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
    )
    return replace(keymap, rules=(*keymap.rules, *llama.HEAD_QK_NORMS, *vision))
