"""T5, T5 v1.1, FLAN-T5: relative positions, unscaled scores. arXiv:1910.10683, arXiv:2210.11416."""

from __future__ import annotations

from dataclasses import replace

from macllm.nn.spec import (
    Activation,
    AttentionSpec,
    Bidirectional,
    Causal,
    EmbeddingSpec,
    EncoderDecoderSpec,
    HeadSpec,
    LayerSpec,
    MLPSpec,
    NormSpec,
    RelativeBiasSpec,
    StackSpec,
)
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule

from . import bart
from .config import Config, activation


def spec(config: Config) -> EncoderDecoderSpec:
    """The spec that `config` describes."""
    embedding = EmbeddingSpec(vocab_size=config["vocab_size"], dim=config["d_model"])
    return EncoderDecoderSpec(
        source=embedding,
        target=embedding,
        encoder=stack(config, decoder=False),
        decoder=stack(config, decoder=True),
        head=HeadSpec(tied=is_tied(config), scale=config["d_model"] ** -0.5 if is_scaled(config) else 1.0),
        shared=not bart.has_two_tables(config),
    )


def is_scaled(config: Config) -> bool:
    """True if the head's input is scaled: in v1.0, but not in v1.1 (`tie_word_embeddings: false`)."""
    return config.get("scale_decoder_outputs", config["tie_word_embeddings"])


def is_tied(config: Config) -> bool:
    """True if the checkpoint has no separate head; for a new model, as in its version of T5."""
    return not config.has_tensor("lm_head.weight", default=not is_scaled(config))


def stack(config: Config, *, decoder: bool) -> StackSpec:
    """The layers of one side."""
    norm = NormSpec(kind="rms", eps=config.get("layer_norm_epsilon", 1e-6))
    heads, depth = config["num_heads"], config["num_layers"]
    attention = AttentionSpec(
        num_heads=heads, num_kv_heads=heads, head_dim=config["d_kv"], scale=1.0, mask=Bidirectional()
    )
    gated, act = _feed_forward(config)
    layer = LayerSpec(
        mixer=replace(attention, mask=Causal()) if decoder else attention,
        cross_attention=attention if decoder else None,
        feed_forward=MLPSpec(
            hidden=config["d_ff"],
            activation=act,
            gated=gated,
        ),
        norm=norm,
    )
    return StackSpec(
        layers=(layer,) * (config.get("num_decoder_layers", depth) if decoder else depth),
        final_norm=norm,
        relative_bias=RelativeBiasSpec(
            num_buckets=config["relative_attention_num_buckets"],
            max_distance=config.get("relative_attention_max_distance", 128),
            num_heads=heads,
            bidirectional=not decoder,
        ),
    )


def _feed_forward(config: Config) -> tuple[bool, Activation]:
    """Gate and activation.

    `is_gated_act` and `dense_act_fn` go before `feed_forward_proj`, as in transformers.
    """
    gate, _, act = str(config.get("feed_forward_proj", "relu")).rpartition("-")
    stated = config.get("dense_act_fn")
    act = activation(stated or act)
    if stated is None and gate == "gated" and act == "gelu":
        act = "gelu_tanh"  # as transformers reads "gated-gelu"
    return bool(config.get("is_gated_act", gate == "gated")), act


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    rules: list[AnyRule] = [*bart.tables(config, "")]
    for side, parts in (("encoder", ("mixer", "mlp")), ("decoder", ("mixer", "cross", "mlp"))):
        bias = "layer.0.SelfAttention.relative_attention_bias"
        rules += [
            Rule(f"{side}.final_layer_norm.*", f"{side}.norm.*"),
            Rule(f"{side}.block.0.{bias}.*", f"{side}.bias.embedding.*"),
            # Early T5 checkpoints repeat the table in the cross-attention, which does not use it.
            Drop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
        ]
        for n, part in enumerate(parts):
            rules += _part(config, f"{side}.block.{{i}}.layer.{n}.", f"{side}.layers.{{i}}.", part)
    # `tie_word_embeddings` only decides how the head is scaled; the matrices are tied in either case.
    return KeyMap(tuple(rules), ties=(bart.shared_table(config.replace(tie_word_embeddings=True), ""),))


def _part(config: Config, theirs: str, ours: str, part: str) -> list[AnyRule]:
    """Names of one attention or feed-forward layer."""
    if part != "mlp":
        name = {"mixer": "SelfAttention", "cross": "EncDecAttention"}[part]
        norm = Rule(f"{theirs}layer_norm.*", f"{ours}{part}_norm.pre.*")
        return [norm, *(Rule(f"{theirs}{name}.{p}.*", f"{ours}{part}.{p}_proj.*") for p in "qkvo")]
    gated, _ = _feed_forward(config)
    up = {"wi_0": "gate_proj", "wi_1": "up_proj"} if gated else {"wi": "up_proj"}
    norm = Rule(f"{theirs}layer_norm.*", f"{ours}feed_forward_norm.pre.*")
    leaves = {**up, "wo": "down_proj"}
    return [norm, *(Rule(f"{theirs}DenseReluDense.{a}.*", f"{ours}feed_forward.{b}.*") for a, b in leaves.items())]
