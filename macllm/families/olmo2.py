"""OLMo 2: norms on each branch's output, and over whole projections. arXiv:2501.00656."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import DecoderSpec, LayerSpec, QKNormSpec
from macllm.weights.keymap import KeyMap

from . import llama
from .config import Config


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    norm = llama.norm(config)
    attention = replace(llama.attention(config), qk_norm=QKNormSpec(norm=norm, over="projection"))
    layer = LayerSpec(mixer=attention, feed_forward=llama.mlp(config), norm=norm, placement="branch")
    return llama.decoder(config, (layer,) * config["num_hidden_layers"], norm)


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    return llama.keymap(config, *llama.ATTENTION, *llama.MLP, *llama.BRANCH_NORMS, *llama.PROJECTION_QK_NORMS)
