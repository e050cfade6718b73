"""BERT: an encoder whose norms follow each sum. arXiv:1810.04805."""

from __future__ import annotations

from macllm.nn.spec import (
    AttentionSpec,
    Bidirectional,
    EmbeddingSpec,
    EncoderSpec,
    HeadSpec,
    LayerSpec,
    LearnedPositions,
    MLPSpec,
    NormSpec,
    StackSpec,
    TransformSpec,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule

from .config import Config, activation, refuse


def spec(config: Config) -> EncoderSpec:
    """The spec that `config` describes."""
    positions = LearnedPositions(count=config["max_position_embeddings"])
    head = config.holds("cls.predictions.bias", otherwise=architecture(config).endswith("MaskedLM"))
    return encoder(config, positions, head=head)


def architecture(config: Config) -> str:
    """The class that wrote the checkpoint, "" when not told."""
    return (config.get("architectures") or [""])[0]


def encoder(config: Config, positions: LearnedPositions, *, head: bool) -> EncoderSpec:
    """An encoder with these positions, and a masked-language-model head where it has one."""
    refuse(config, is_decoder=True, add_cross_attention=True)
    refuse(config, position_embedding_type="relative_key")
    refuse(config, position_embedding_type="relative_key_query")
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    norm = NormSpec(kind="layer", eps=config.get("layer_norm_eps", 1e-12), bias=True)
    attention = AttentionSpec(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        scale=(dim // heads) ** -0.5,
        mask=Bidirectional(),
        qkv_bias=True,
        out_bias=True,
    )
    act = activation(config.get("hidden_act", "gelu"))
    mlp = MLPSpec(hidden=config["intermediate_size"], activation=act, gated=False, bias=True)
    layer = LayerSpec(attention=attention, feed_forward=mlp, norm=norm, placement="post")
    return EncoderSpec(
        embedding=EmbeddingSpec(
            vocab_size=config["vocab_size"],
            dim=dim,
            positions=positions,
            token_types=config["type_vocab_size"],
            norm=norm,
        ),
        encoder=StackSpec(layers=(layer,) * config["num_hidden_layers"], final_norm=None),
        head=_head(config, norm) if head else None,
        pooler=config.holds("pooler.dense.weight", otherwise=architecture(config).endswith("Model")),
        context_length=positions.count,
    )


def _head(config: Config, norm: NormSpec) -> HeadSpec:
    # RoBERTa's head is always GELU; BERT's is the body's activation.
    act = activation(config.get("hidden_act", "gelu")) if config["model_type"] == "bert" else "gelu"
    return HeadSpec(tied=True, bias=True, transform=TransformSpec(activation=act, norm=norm))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    head = (
        Rule("cls.predictions.transform.dense.*", "head.transform.dense.*"),
        Rule("cls.predictions.transform.LayerNorm.*", "head.transform.norm.*"),
        Rule("cls.predictions.bias", "head.bias"),
        Drop("cls.predictions.decoder.*"),
        Drop("cls.seq_relationship.*"),
    )
    return KeyMap((*head, *body("bert.")), aliases=(("", ""), ("", "bert.")))


def body(prefix: str) -> tuple[AnyRule, ...]:
    """Names of the encoder itself."""
    theirs, ours = prefix + "encoder.layer.{i}.", "encoder.layers.{i}."
    return (
        Drop(prefix + "embeddings.position_ids"),
        Rule(prefix + "embeddings.word_embeddings.*", "embedding.tokens.*"),
        Rule(prefix + "embeddings.position_embeddings.*", "embedding.positions.table.*"),
        Rule(prefix + "embeddings.token_type_embeddings.*", "embedding.token_types.*"),
        Rule(prefix + "embeddings.LayerNorm.*", "embedding.norm.*"),
        *(Rule(f"{theirs}attention.self.{p}.*", f"{ours}attention.{p[0]}_proj.*") for p in ("query", "key", "value")),
        Rule(theirs + "attention.output.dense.*", ours + "attention.o_proj.*"),
        Rule(theirs + "attention.output.LayerNorm.*", ours + "attention_norm.sum.*"),
        Rule(theirs + "intermediate.dense.*", ours + "feed_forward.up_proj.*"),
        Rule(theirs + "output.dense.*", ours + "feed_forward.down_proj.*"),
        Rule(theirs + "output.LayerNorm.*", ours + "feed_forward_norm.sum.*"),
        Rule(prefix + "pooler.dense.*", "pooler.*"),
    )
