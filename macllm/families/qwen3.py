"""Qwen 3: Llama with QK norm. arXiv:2505.09388."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import AttentionSpec, DecoderSpec, QKNormSpec
from macllm.weights.keymap import KeyMap

from . import llama, qwen2
from .config import Config


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    return qwen2.decoder(config, attention(config))


def attention(config: Config) -> AttentionSpec:
    """Llama's attention with a norm over each head of queries and keys."""
    return replace(llama.attention(config), qk_norm=QKNormSpec(norm=llama.norm(config), over="head"))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    return llama.keymap(config, *llama.ATTENTION, *llama.MLP, *llama.PRE_NORMS, *llama.HEAD_QK_NORMS)
