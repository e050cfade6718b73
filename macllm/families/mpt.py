"""MPT (MosaicML 2023): linear biases on the scores in place of positions (ALiBi), no biases in layers."""

from __future__ import annotations

from macllm.errors import CheckpointError
from macllm.nn.spec import (
    AttentionSpec,
    Causal,
    DecoderSpec,
    EmbeddingSpec,
    LayerSpec,
    LinearBiasSpec,
    MLPSpec,
    NormSpec,
    StackSpec,
)
from macllm.weights.keymap import KeyMap, Rule, Split, Tie

from .config import Config, decoder_head, refuse

# The only values that are supported, of `attn_config`: transformers ignores others.
_ATTENTION = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None, "prefix_lm": False, "qk_ln": False}
_EXPANSION = 4  # of the feed-forward layer, whatever `expansion_ratio` says, as in transformers


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes."""
    refuse(config, no_bias=False)
    given = {**_ATTENTION, **{key: value for key, value in config["attn_config"].items() if value is not None}}
    for key, only in _ATTENTION.items():
        if given[key] != only:
            raise CheckpointError(f"attn_config.{key} = {given[key]!r} of config.json is not supported for mpt")
    dim, heads = config["d_model"], config["n_heads"]
    norm = NormSpec(kind="layer", eps=config["layer_norm_epsilon"])
    layer = LayerSpec(
        mixer=AttentionSpec(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=dim // heads,
            scale=given.get("softmax_scale", (dim // heads) ** -0.5),
            mask=Causal(),
        ),
        feed_forward=MLPSpec(hidden=_EXPANSION * dim, activation="gelu", gated=False),
        norm=norm,
    )
    return DecoderSpec(
        embedding=EmbeddingSpec(vocab_size=config["vocab_size"], dim=dim),
        decoder=StackSpec(
            layers=(layer,) * config["n_layers"],
            final_norm=norm,
            relative_bias=LinearBiasSpec(num_heads=heads),
        ),
        head=decoder_head(config),
        context_length=config["max_seq_len"],
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    theirs, ours = "transformer.blocks.{i}.", "decoder.layers.{i}."
    qkv = tuple(f"{ours}mixer.{p}_proj.*" for p in "qkv")
    rules = (
        Rule("lm_head.*", "head.proj.*"),
        Rule("transformer.wte.*", "embedding.tokens.*"),
        Rule("transformer.norm_f.*", "decoder.norm.*"),
        Rule(theirs + "norm_1.*", ours + "mixer_norm.pre.*"),
        Rule(theirs + "norm_2.*", ours + "feed_forward_norm.pre.*"),
        Split(theirs + "attn.Wqkv.*", qkv, (config["d_model"],) * 3),
        Rule(theirs + "attn.out_proj.*", ours + "mixer.o_proj.*"),
        Rule(theirs + "ffn.up_proj.*", ours + "feed_forward.up_proj.*"),
        Rule(theirs + "ffn.down_proj.*", ours + "feed_forward.down_proj.*"),
    )
    ties = (Tie(source="transformer.wte", heads=("lm_head",)),) if config.get("tie_word_embeddings") else ()
    return KeyMap(rules, aliases=(("", ""), ("", "transformer.")), ties=ties)
