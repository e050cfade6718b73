"""BERT: a post-norm encoder. arXiv:1810.04805."""

from __future__ import annotations

from macllm.nn.spec import (
    Activation,
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
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule, Tie

from .config import Config, activation, architecture, is_tied, refuse


def spec(config: Config) -> EncoderSpec:
    """The spec that `config` describes."""
    positions = LearnedPositions(count=config.positions("position_embeddings.weight"))
    act = activation(config.get("hidden_act", "gelu"))
    return encoder(config, positions, masked_head(config, "cls.predictions", act))


def encoder(config: Config, positions: LearnedPositions, head: HeadSpec | None) -> EncoderSpec:
    """An encoder with these positions and this masked-language-model head."""
    refuse(config, is_decoder=True, add_cross_attention=True)
    refuse(config, position_embedding_type="relative_key")
    refuse(config, position_embedding_type="relative_key_query")
    dim, heads = config["hidden_size"], config["num_attention_heads"]
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
    layer = LayerSpec(mixer=attention, feed_forward=mlp, norm=norm(config), placement="post")
    return EncoderSpec(
        embedding=EmbeddingSpec(
            vocab_size=config["vocab_size"],
            dim=dim,
            positions=positions,
            token_types=config["type_vocab_size"],
            norm=norm(config),
        ),
        encoder=StackSpec(layers=(layer,) * config["num_hidden_layers"], final_norm=None),
        head=head,
        pooler=config.has_tensor("pooler.dense.weight", default=architecture(config).endswith("Model")),
        context_length=positions.count,
    )


def norm(config: Config) -> NormSpec:
    """LayerNorm with the config's epsilon."""
    return NormSpec(kind="layer", eps=config.get("layer_norm_eps", 1e-12), bias=True)


def masked_head(config: Config, name: str, activation: Activation) -> HeadSpec | None:
    """The masked-language-model head with tensors named `name`; None if the checkpoint has none."""
    if not config.has_tensor(f"{name}.bias", default=architecture(config).endswith("MaskedLM")):
        return None
    transform = TransformSpec(activation=activation, norm=norm(config))
    return HeadSpec(tied=is_tied(config, f"{name}.decoder"), bias=True, transform=transform)


def head_ties(config: Config, table: str, head: str) -> tuple[Tie, ...]:
    """The ties of a masked-language-model head: its bias, and its matrix if the config ties it."""
    bias = Tie(source=f"{head}.bias", tables=(f"{head}.decoder.bias",), leaves=("",))
    return (bias, Tie(source=table, heads=(f"{head}.decoder",))) if config.get("tie_word_embeddings") else (bias,)


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    head = (
        Rule("cls.predictions.transform.dense.*", "head.transform.dense.*"),
        Rule("cls.predictions.transform.LayerNorm.*", "head.transform.norm.*"),
        Rule("cls.predictions.bias", "head.bias"),
        Rule("cls.predictions.decoder.*", "head.proj.*"),
        Drop("cls.seq_relationship.*"),
    )
    ties = head_ties(config, "bert.embeddings.word_embeddings", "cls.predictions")
    return KeyMap((*head, *body("bert.")), aliases=(("", ""), ("", "bert.")), ties=ties)


def body(prefix: str) -> tuple[AnyRule, ...]:
    """Names of the encoder without its head."""
    theirs, ours = prefix + "encoder.layer.{i}.", "encoder.layers.{i}."
    return (
        Drop(prefix + "embeddings.position_ids"),
        Drop(prefix + "embeddings.token_type_ids"),
        Rule(prefix + "embeddings.word_embeddings.*", "embedding.tokens.*"),
        Rule(prefix + "embeddings.position_embeddings.*", "embedding.positions.table.*"),
        Rule(prefix + "embeddings.token_type_embeddings.*", "embedding.token_types.*"),
        Rule(prefix + "embeddings.LayerNorm.*", "embedding.norm.*"),
        *(Rule(f"{theirs}attention.self.{p}.*", f"{ours}mixer.{p[0]}_proj.*") for p in ("query", "key", "value")),
        Rule(theirs + "attention.output.dense.*", ours + "mixer.o_proj.*"),
        Rule(theirs + "attention.output.LayerNorm.*", ours + "mixer_norm.sum.*"),
        Rule(theirs + "intermediate.dense.*", ours + "feed_forward.up_proj.*"),
        Rule(theirs + "output.dense.*", ours + "feed_forward.down_proj.*"),
        Rule(theirs + "output.LayerNorm.*", ours + "feed_forward_norm.sum.*"),
        Rule(prefix + "pooler.dense.*", "pooler.*"),
    )
