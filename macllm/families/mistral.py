"""Mistral 7B: Llama with a sliding window. arXiv:2310.06825."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import DecoderSpec, LayerSpec

from . import llama
from .config import Config

keys = llama.keys


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    attention = replace(llama.attention(config), mask=llama.window(config))
    layer = LayerSpec(mixer=attention, feed_forward=llama.mlp(config), norm=llama.norm(config))
    return llama.decoder(config, (layer,) * config["num_hidden_layers"], llama.norm(config))
