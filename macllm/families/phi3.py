"""Phi-3, 3.5, 4-mini (arXiv:2404.14219): Llama with fused projections, LongRoPE (arXiv:2402.13753)."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import AttentionSpec, DecoderSpec, LayerSpec
from macllm.weights.keymap import KeyMap, Rule, Split

from . import llama
from .config import Config, rope, rope_parameters


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    layer = LayerSpec(mixer=attention(config), feed_forward=llama.mlp(config), norm=llama.norm(config))
    decoder = llama.decoder(config, (layer,) * config["num_hidden_layers"], llama.norm(config))
    # In this family "yarn" is LongRoPE, and max_position_embeddings includes it.
    return replace(decoder, context_length=config.get("max_position_embeddings"))


def attention(config: Config) -> AttentionSpec:
    """Llama's attention with LongRoPE, which early configs call "su" or "yarn"."""
    parameters = rope_parameters(config)
    if parameters["rope_type"] in ("su", "yarn"):
        parameters["rope_type"] = "longrope"
    base = llama.attention(config.replace(rope_parameters=None, rope_scaling=None))
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor", 1.0)
    return replace(base, mask=llama.window(config), rope=rope(config, int(base.head_dim * share), parameters))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    a, hidden = attention(config), config["intermediate_size"]
    q, kv = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    theirs, ours = "model.layers.{i}.", "decoder.layers.{i}."
    qkv = tuple(f"{ours}mixer.{p}_proj.*" for p in "qkv")
    gate_up = tuple(f"{ours}feed_forward.{p}_proj.*" for p in ("gate", "up"))
    return llama.keymap(
        config,
        *llama.PRE_NORMS,
        Split(theirs + "self_attn.qkv_proj.*", qkv, (q, kv, kv)),
        Rule(theirs + "self_attn.o_proj.*", ours + "mixer.o_proj.*"),
        Split(theirs + "mlp.gate_up_proj.*", gate_up, (hidden, hidden)),
        Rule(theirs + "mlp.down_proj.*", ours + "feed_forward.down_proj.*"),
    )
