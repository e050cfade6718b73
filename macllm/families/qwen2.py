"""Qwen 2 and 2.5: Llama with biases on queries, keys and values. arXiv:2407.10671."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import AttentionSpec, Causal, DecoderSpec, LayerSpec

from . import llama
from .config import Config, layer_types

keys = llama.keys


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    return decoder(config, replace(llama.attention(config), qkv_bias=True, out_bias=False))


def decoder(config: Config, attention: AttentionSpec) -> DecoderSpec:
    """A decoder with this attention, later layers with a sliding window if `use_sliding_window`."""
    window = llama.window(config)
    count, slides = config["num_hidden_layers"], config["use_sliding_window"] and window != Causal()
    first = config.get("max_window_layers", 28)
    masks = {"full_attention": Causal(), "sliding_attention": window}
    kinds = layer_types(
        config, ["sliding_attention" if slides and i >= first else "full_attention" for i in range(count)], masks
    )
    layers = tuple(
        LayerSpec(
            mixer=replace(attention, mask=masks[kind]),
            feed_forward=llama.mlp(config),
            norm=llama.norm(config),
        )
        for kind in kinds
    )
    return llama.decoder(config, layers, llama.norm(config))
