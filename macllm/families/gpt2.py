"""GPT-2 (Radford et al. 2019): learned positions; weights stored (in, out), QKV fused."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import (
    AttentionSpec,
    Causal,
    DecoderSpec,
    EmbeddingSpec,
    LayerSpec,
    LearnedPositions,
    MLPSpec,
    NormSpec,
    StackSpec,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule, Split, Tie

from .config import Config, activation, decoder_head, refuse


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    refuse(config, add_cross_attention=True)
    dim, heads = config["n_embd"], config["n_head"]
    norm = NormSpec(kind="layer", eps=config.get("layer_norm_epsilon", 1e-5), bias=True)
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        scale=(dim // heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0,
        mask=Causal(),
        qkv_bias=True,
        out_bias=True,
    )
    mlp = MLPSpec(
        hidden=config.get("n_inner", 4 * dim),
        activation=activation(config.get("activation_function", "gelu_new")),
        gated=False,
        bias=True,
    )
    by_depth = config.get("scale_attn_by_inverse_layer_idx", False)
    layers = tuple(
        LayerSpec(
            mixer=replace(attention, scale=attention.scale / (i + 1)) if by_depth else attention,
            feed_forward=mlp,
            norm=norm,
        )
        for i in range(config["n_layer"])
    )
    positions = LearnedPositions(count=config["n_positions"])
    return DecoderSpec(
        embedding=EmbeddingSpec(vocab_size=config["vocab_size"], dim=dim, positions=positions),
        decoder=StackSpec(layers=layers, final_norm=norm),
        head=decoder_head(config),
        context_length=config["n_positions"],
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    rules = _rules(config, transpose=True)
    return KeyMap(rules, aliases=(("", ""), ("", "transformer.")), saved_as=("transformer.", ""), ties=_ties(config))


def module_keys(config: Config) -> KeyMap:
    """Names of transformers' modules, whose first word checkpoints leave out."""
    return replace(keys(config), saved_as=("", ""))


def mlx_keys(config: Config) -> KeyMap:
    """Tensor names as mlx-lm writes them: under "model." and (out, in)."""
    rules = _rules(config, transpose=False)
    return KeyMap(
        rules,
        aliases=(("model.", "transformer."), ("", ""), ("", "transformer.")),
        saved_as=("transformer.", "model."),
        ties=_ties(config),
    )


def _ties(config: Config) -> tuple[Tie, ...]:
    return (Tie(source="transformer.wte", heads=("lm_head",)),) if config.get("tie_word_embeddings") else ()


def _rules(config: Config, *, transpose: bool) -> tuple[AnyRule, ...]:
    theirs, ours, dim = "transformer.h.{i}.", "decoder.layers.{i}.", config["n_embd"]
    qkv = tuple(f"{ours}mixer.{p}_proj.*" for p in "qkv")
    return (
        Drop(theirs + "attn.bias"),
        Drop(theirs + "attn.masked_bias"),
        Rule("lm_head.*", "head.proj.*"),
        Rule("transformer.wte.*", "embedding.tokens.*"),
        Rule("transformer.wpe.*", "embedding.positions.table.*"),
        Rule("transformer.ln_f.*", "decoder.norm.*"),
        Rule(theirs + "ln_1.*", ours + "mixer_norm.pre.*"),
        Rule(theirs + "ln_2.*", ours + "feed_forward_norm.pre.*"),
        Split(theirs + "attn.c_attn.*", qkv, (dim,) * 3, transpose=transpose),
        Rule(theirs + "attn.c_proj.*", ours + "mixer.o_proj.*", transpose=transpose),
        Rule(theirs + "mlp.c_fc.*", ours + "feed_forward.up_proj.*", transpose=transpose),
        Rule(theirs + "mlp.c_proj.*", ours + "feed_forward.down_proj.*", transpose=transpose),
    )
