"""BigBird: BERT with block-sparse attention. arXiv:2007.14062."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from macllm.errors import CheckpointError
from macllm.nn.spec import BlockSparseSpec, EncoderSpec
from macllm.weights.keymap import KeyMap, Rule

from . import bert
from .config import Config


def spec(config: Config) -> EncoderSpec:
    """The spec that `config` describes."""
    base, kind = bert.spec(config), config["attention_type"]
    if kind not in ("block_sparse", "original_full"):
        raise CheckpointError(f"attention_type of config.json is {kind!r}, not block_sparse or original_full")
    if config["num_random_blocks"] < 0:
        raise CheckpointError(f"num_random_blocks of config.json is {config['num_random_blocks']}, less than 0")
    layers = base.encoder.layers
    attention = replace(layers[0].mixer, qkv_bias=config["use_bias"])
    each = [attention] * len(layers)
    if kind == "block_sparse":
        sparse: dict[str, Any] = {
            "block_size": config["block_size"],
            "num_random_blocks": config["num_random_blocks"],
            "max_positions": base.context_length,
        }
        each = [BlockSparseSpec(**vars(attention), **sparse, seed=layer) for layer in range(len(layers))]
    made = tuple(replace(layer, mixer=own) for layer, own in zip(layers, each, strict=True))
    scale = config["hidden_size"] ** 0.5 if config["rescale_embeddings"] else 1.0
    return replace(
        base,
        embedding=replace(base.embedding, scale=scale),
        encoder=replace(base.encoder, layers=made),
        pooler=config.has_tensor("pooler.weight", default=True),
    )


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    base = bert.keys(config)
    rules = (rule for rule in base.rules if rule.theirs != "bert.pooler.dense.*")
    return replace(base, rules=(*rules, Rule("bert.pooler.*", "pooler.*")))
