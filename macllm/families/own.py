"""macllm's own decoders: a Llama with an attention kind per layer, to train from scratch."""

from __future__ import annotations

from dataclasses import replace

from macllm.errors import CheckpointError
from macllm.nn.spec import AttentionSpec, DecoderSpec, LayerSpec, PerformerSpec
from macllm.weights.keymap import KeyMap, Rule

from . import llama
from .config import Config


def spec(config: Config) -> DecoderSpec:
    """The spec that `config` describes; `attention_kind` is one kind, or a list with one per layer."""
    kind, count = config["attention_kind"], config["num_hidden_layers"]
    kinds = list(kind) if isinstance(kind, list | tuple) else [kind] * count
    if len(kinds) != count:
        raise CheckpointError(f"attention_kind lists {len(kinds)} layers, but num_hidden_layers is {count}")
    softmax = llama.attention(config)
    layers = (
        LayerSpec(
            mixer=_attention(config, softmax, kind, number), feed_forward=llama.mlp(config), norm=llama.norm(config)
        )
        for number, kind in enumerate(kinds)
    )
    return llama.decoder(config, tuple(layers), llama.norm(config))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    features = Rule("model.layers.{i}.self_attn.features", "decoder.layers.{i}.mixer.features")
    base = llama.keys(config)
    return replace(base, rules=(*base.rules, features))


def _attention(config: Config, softmax: AttentionSpec, kind: str, layer: int) -> AttentionSpec:
    match kind:
        case "softmax":
            return softmax
        case "performer":
            return PerformerSpec(**vars(softmax), num_features=config["num_random_features"], seed=layer)
    raise CheckpointError(f"attention_kind of config.json is {kind!r}, not softmax or performer")
