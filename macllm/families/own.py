"""macllm's own decoders, to train from scratch: a Llama with kinds of attention and of positions."""

from __future__ import annotations

from dataclasses import replace

from macllm.errors import CheckpointError
from macllm.nn.spec import AttentionSpec, DecoderSpec, LayerSpec, LinearBiasSpec, PerformerSpec
from macllm.weights.keymap import KeyMap, Rule

from . import llama
from .config import Config


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes.

    `attention_kind` is one kind, or a list with one per layer; `position_kind` is rope or alibi (arXiv:2108.12409).
    """
    kind, count = config["attention_kind"], config["num_hidden_layers"]
    kinds = list(kind) if isinstance(kind, list | tuple) else [kind] * count
    if len(kinds) != count:
        raise CheckpointError(f"attention_kind lists {len(kinds)} layers, but num_hidden_layers is {count}")
    softmax = llama.attention(config)
    has_alibi = _has_alibi(config, kinds)
    if has_alibi:
        softmax = replace(softmax, rope=None)
    layers = (
        LayerSpec(
            mixer=_attention(config, softmax, kind, number), feed_forward=llama.mlp(config), norm=llama.norm(config)
        )
        for number, kind in enumerate(kinds)
    )
    made = llama.decoder(config, tuple(layers), llama.norm(config))
    if not has_alibi:
        return made
    return replace(made, decoder=replace(made.decoder, relative_bias=LinearBiasSpec(num_heads=softmax.num_heads)))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    features = Rule("model.layers.{i}.self_attn.features", "decoder.layers.{i}.mixer.features")
    base = llama.keys(config)
    return replace(base, rules=(*base.rules, features))


def _has_alibi(config: Config, kinds: list[str]) -> bool:
    kind = config["position_kind"]
    if kind not in ("rope", "alibi"):
        raise CheckpointError(f"position_kind of config.json is {kind!r}, not rope or alibi")
    if kind == "alibi" and "performer" in kinds:
        cause = "Performer has no scores that a bias could be added to"
        raise CheckpointError("position_kind alibi and attention_kind performer exclude each other", cause=cause)
    return kind == "alibi"


def _attention(config: Config, softmax: AttentionSpec, kind: str, layer: int) -> AttentionSpec:
    match kind:
        case "softmax":
            return softmax
        case "performer":
            return PerformerSpec(**vars(softmax), num_features=config["num_random_features"], seed=layer)
    raise CheckpointError(f"attention_kind of config.json is {kind!r}, not softmax or performer")
