"""Llama 2 and 3, the base of most other families. arXiv:2307.09288, arXiv:2407.21783."""

from __future__ import annotations

from macllm.nn.spec import (
    AttentionSpec,
    Causal,
    DecoderSpec,
    EmbeddingSpec,
    LayerSpec,
    MaskSpec,
    MLPSpec,
    NormSpec,
    Sliding,
    StackSpec,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule, Tie

from .config import Config, activation, context_length, decoder_head, rope


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    layer = LayerSpec(mixer=attention(config), feed_forward=mlp(config), norm=norm(config))
    return decoder(config, (layer,) * config["num_hidden_layers"], norm(config))


def norm(config: Config) -> NormSpec:
    """RMSNorm with the config's epsilon."""
    return NormSpec(kind="rms", eps=config.get("rms_norm_eps", 1e-6))


def attention(config: Config) -> AttentionSpec:
    """Causal grouped-query attention with RoPE."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads", heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        mask=Causal(),
        rope=rope(config, head_dim),
        qkv_bias=config.get("attention_bias", False),
        out_bias=config.get("attention_bias", False),
    )


def window(config: Config) -> MaskSpec:
    """A sliding-window mask if the config has a window, else a causal mask."""
    return Sliding(config["sliding_window"]) if config.get("sliding_window") else Causal()


def mlp(config: Config) -> MLPSpec:
    """The gated feed-forward layer."""
    return MLPSpec(
        hidden=config["intermediate_size"],
        activation=activation(config.get("hidden_act", "silu")),
        gated=True,
        bias=config.get("mlp_bias", False),
    )


def decoder(config: Config, layers: tuple[LayerSpec, ...], final_norm: NormSpec) -> DecoderSpec:
    """A decoder of these layers with the config's vocabulary."""
    return DecoderSpec(
        embedding=EmbeddingSpec(vocab_size=config["vocab_size"], dim=config["hidden_size"]),
        decoder=StackSpec(layers=layers, final_norm=final_norm),
        head=decoder_head(config),
        context_length=context_length(config),
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    return keymap(config, *ATTENTION, *MLP, *PRE_NORMS)


def keymap(config: Config, *rules: AnyRule) -> KeyMap:
    """`rules`, with the names outside the layers, which all these families share."""
    ties = (Tie(source="model.embed_tokens", heads=("lm_head",)),) if config.get("tie_word_embeddings") else ()
    return KeyMap((*OUTER, *rules), aliases=TEXT_HALF, ties=ties)


# The text model of a multimodal checkpoint, as transformers 4 and 5 name it, and a model without a head.
TEXT_HALF = (
    ("", ""),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.", ""),
    ("", "model."),
)
OUTER: tuple[AnyRule, ...] = (
    Drop("model.layers.{i}.self_attn.rotary_emb.inv_freq"),
    Drop("model.rotary_emb.inv_freq"),
    Rule("model.embed_tokens.*", "embedding.tokens.*"),
    Rule("model.norm.*", "decoder.norm.*"),
    Rule("lm_head.*", "head.proj.*"),
)
ATTENTION = tuple(
    Rule(f"model.layers.{{i}}.self_attn.{leaf}.*", f"decoder.layers.{{i}}.mixer.{leaf}.*")
    for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")
)
MLP = tuple(
    Rule(f"model.layers.{{i}}.mlp.{leaf}.*", f"decoder.layers.{{i}}.feed_forward.{leaf}.*")
    for leaf in ("gate_proj", "up_proj", "down_proj")
)
PRE_NORMS = (
    Rule("model.layers.{i}.input_layernorm.*", "decoder.layers.{i}.mixer_norm.pre.*"),
    Rule("model.layers.{i}.post_attention_layernorm.*", "decoder.layers.{i}.feed_forward_norm.pre.*"),
)
SANDWICH_NORMS = (
    Rule("model.layers.{i}.input_layernorm.*", "decoder.layers.{i}.mixer_norm.pre.*"),
    Rule("model.layers.{i}.post_attention_layernorm.*", "decoder.layers.{i}.mixer_norm.branch.*"),
    Rule("model.layers.{i}.pre_feedforward_layernorm.*", "decoder.layers.{i}.feed_forward_norm.pre.*"),
    Rule("model.layers.{i}.post_feedforward_layernorm.*", "decoder.layers.{i}.feed_forward_norm.branch.*"),
)
BRANCH_NORMS = (
    Rule("model.layers.{i}.post_attention_layernorm.*", "decoder.layers.{i}.mixer_norm.branch.*"),
    Rule("model.layers.{i}.post_feedforward_layernorm.*", "decoder.layers.{i}.feed_forward_norm.branch.*"),
)
HEAD_QK_NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.*", "decoder.layers.{i}.mixer.q_head_norm.*"),
    Rule("model.layers.{i}.self_attn.k_norm.*", "decoder.layers.{i}.mixer.k_head_norm.*"),
)
PROJECTION_QK_NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.*", "decoder.layers.{i}.mixer.q_norm.*"),
    Rule("model.layers.{i}.self_attn.k_norm.*", "decoder.layers.{i}.mixer.k_norm.*"),
)
