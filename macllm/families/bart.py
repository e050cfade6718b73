"""BART: encoder and decoder with learned positions and norms after each sum. arXiv:1910.13461."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import (
    AttentionSpec,
    Bidirectional,
    Causal,
    EmbeddingSpec,
    EncoderDecoderSpec,
    HeadSpec,
    LayerSpec,
    LearnedPositions,
    MLPSpec,
    NormSpec,
    SinusoidalPositions,
    StackSpec,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule, Squeeze, Tie

from .config import Config, activation, is_tied


def spec(config: Config) -> EncoderDecoderSpec:
    """The spec that `config` describes."""
    # The first two rows of the table are unused.
    positions = LearnedPositions(count=config.positions("encoder.embed_positions.weight", 2), offset=2)
    embedding = embed(config, positions, NORM)
    return text_to_text(config, embedding, embedding)


NORM = NormSpec(kind="layer", eps=1e-5, bias=True)


def embed(
    config: Config,
    positions: LearnedPositions | SinusoidalPositions,
    norm: NormSpec | None,
    vocab_size: int | None = None,
) -> EmbeddingSpec:
    """Token embeddings, scaled by sqrt(D) if `scale_embedding`, and positions."""
    dim = config["d_model"]
    return EmbeddingSpec(
        vocab_size=vocab_size or config["vocab_size"],
        dim=dim,
        scale=dim**0.5 if config.get("scale_embedding", False) else 1.0,
        positions=positions,
        norm=norm,
    )


def text_to_text(config: Config, source: EmbeddingSpec, target: EmbeddingSpec) -> EncoderDecoderSpec:
    """Both stacks over these embeddings."""
    return EncoderDecoderSpec(
        source=source,
        target=target,
        encoder=stack(config, decoder=False),
        decoder=stack(config, decoder=True),
        head=HeadSpec(tied=is_tied(config), bias=config.has_tensor("final_logits_bias", default=True)),
        shared=not has_two_tables(config),
        context_length=source.positions.count if source.positions else None,
    )


def stack(config: Config, *, decoder: bool) -> StackSpec:
    """The layers of one side."""
    side = "decoder" if decoder else "encoder"
    heads = config[f"{side}_attention_heads"]
    head_dim = config["d_model"] // heads
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        mask=Bidirectional(),
        qkv_bias=True,
        out_bias=True,
    )
    layer = LayerSpec(
        mixer=replace(attention, mask=Causal()) if decoder else attention,
        cross_attention=attention if decoder else None,
        feed_forward=MLPSpec(
            hidden=config[f"{side}_ffn_dim"],
            activation=activation(config.get("activation_function", "gelu")),
            gated=False,
            bias=True,
        ),
        norm=NORM,
        placement="post",
    )
    return StackSpec(layers=(layer,) * config[f"{side}_layers"], final_norm=None)


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    positions = tuple(
        Rule(f"model.{side}.{theirs}.*", f"{ours}.{leaf}.*")
        for side, ours in (("encoder", "embedding"), ("decoder", "target_embedding"))
        for theirs, leaf in (("embed_positions", "positions.table"), ("layernorm_embedding", "norm"))
    )
    return KeyMap((*tables(config), *positions, *layers()), aliases=ALIASES, ties=(shared_table(config),))


ALIASES = (("", ""), ("", "model."))


def has_two_tables(config: Config) -> bool:
    """True if encoder and decoder have different token embeddings, by a checkpoint's names or ours."""
    names = ("decoder.embed_tokens.weight", "target_embedding.tokens.weight")
    separate = not config.get("share_encoder_decoder_embeddings", True)
    return separate or any(config.has_tensor(name, default=False) for name in names)


def tables(config: Config, prefix: str = "model.") -> tuple[AnyRule, ...]:
    """Names of the one or two token embeddings and the head."""
    head = Rule("lm_head.*", "head.proj.*")
    if not has_two_tables(config):
        return Rule(f"{prefix}shared.*", "embedding.tokens.*"), head
    return (
        Rule(f"{prefix}encoder.embed_tokens.*", "embedding.tokens.*"),
        Rule(f"{prefix}decoder.embed_tokens.*", "target_embedding.tokens.*"),
        head,
    )


def shared_table(config: Config, prefix: str = "model.") -> Tie:
    """The tie of both token embeddings, and of the head if the config ties it."""
    head = ("lm_head",) if config.get("tie_word_embeddings") else ()
    tables = (f"{prefix}encoder.embed_tokens", f"{prefix}decoder.embed_tokens")
    return Tie(source=f"{prefix}shared", tables=tables, heads=head)


def layers() -> tuple[AnyRule, ...]:
    """Names of both stacks."""
    rules: list[AnyRule] = [
        Squeeze("final_logits_bias", "head.bias"),
        Drop("model.encoder.version"),
        Drop("model.decoder.version"),
    ]
    for side, parts in (("encoder", ("mixer",)), ("decoder", ("mixer", "cross"))):
        theirs, ours = f"model.{side}.layers.{{i}}.", f"{side}.layers.{{i}}."
        for part in parts:
            name = {"mixer": "self_attn", "cross": "encoder_attn"}[part]
            rules += [Rule(f"{theirs}{name}.{p}_proj.*", f"{ours}{part}.{p}_proj.*") for p in "qkv"]
            rules.append(Rule(f"{theirs}{name}.out_proj.*", f"{ours}{part}.o_proj.*"))
            rules.append(Rule(f"{theirs}{name}_layer_norm.*", f"{ours}{part}_norm.sum.*"))
        rules += [
            Rule(f"{theirs}fc1.*", f"{ours}feed_forward.up_proj.*"),
            Rule(f"{theirs}fc2.*", f"{ours}feed_forward.down_proj.*"),
            Rule(f"{theirs}final_layer_norm.*", f"{ours}feed_forward_norm.sum.*"),
        ]
    return tuple(rules)
