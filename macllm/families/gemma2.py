"""Gemma 2: sandwich norms, capped logits, alternating local and global layers. arXiv:2408.00118."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import (
    AttentionSpec,
    Causal,
    DecoderSpec,
    EmbeddingSpec,
    LayerSpec,
    MLPSpec,
    NormSpec,
    Sliding,
    StackSpec,
)
from macllm.weights.keymap import KeyMap

from . import llama
from .config import Config, activation, context_length, decoder_head, layer_types, refuse


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    refuse(config, use_bidirectional_attention=True)
    count = config["num_hidden_layers"]
    masks = {"full_attention": Causal(), "sliding_attention": Sliding(config["sliding_window"])}
    kinds = layer_types(config, ["full_attention" if i % 2 else "sliding_attention" for i in range(count)], masks)
    return decoder(config, tuple(layer(config, replace(attention(config), mask=masks[kind])) for kind in kinds))


def attention(config: Config) -> AttentionSpec:
    """Llama's attention with `query_pre_attn_scalar` and capped logits."""
    return replace(
        llama.attention(config),
        scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=config.get("attn_logit_softcapping"),
    )


def layer(config: Config, attention: AttentionSpec) -> LayerSpec:
    """A layer with norms on both sides of each branch."""
    act = activation(config.get("hidden_activation", "gelu_pytorch_tanh"))
    mlp = MLPSpec(hidden=config["intermediate_size"], activation=act, gated=True)
    return LayerSpec(mixer=attention, feed_forward=mlp, norm=norm(config), placement="sandwich")


def norm(config: Config) -> NormSpec:
    """RMSNorm that scales by 1 + weight."""
    return replace(llama.norm(config), unit_offset=True)


def decoder(config: Config, layers: tuple[LayerSpec, ...]) -> DecoderSpec:
    """A decoder of these layers whose embeddings are scaled by sqrt(D)."""
    dim = config["hidden_size"]
    return DecoderSpec(
        embedding=EmbeddingSpec(vocab_size=config["vocab_size"], dim=dim, scale=dim**0.5),
        decoder=StackSpec(layers=layers, final_norm=norm(config)),
        head=decoder_head(config, config.get("final_logit_softcapping")),
        context_length=context_length(config),
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    return llama.keymap(config, *llama.ATTENTION, *llama.MLP, *llama.SANDWICH_NORMS)
