"""RoBERTa: BERT with positions that begin after the padding token's id. arXiv:1907.11692."""

from __future__ import annotations

from macllm.nn.spec import EncoderSpec, LearnedPositions
from macllm.weights.keymap import KeyMap, Rule

from . import bert
from .config import Config


def spec(config: Config) -> EncoderSpec:
    """The spec that `config` describes."""
    first = config.get("pad_token_id", 1) + 1
    positions = LearnedPositions(count=config.positions("position_embeddings.weight") - first, offset=first)
    return bert.encoder(config, positions, bert.masked_head(config, "lm_head", "gelu"))  # the head always uses GELU


def keys(config: Config, base: str = "roberta") -> KeyMap:
    """Tensor names of a checkpoint with this config; `base` is the prefix of its encoder."""
    head = (
        Rule("lm_head.dense.*", "head.transform.dense.*"),
        Rule("lm_head.layer_norm.*", "head.transform.norm.*"),
        Rule("lm_head.bias", "head.bias"),
        Rule("lm_head.decoder.*", "head.proj.*"),
    )
    ties = bert.head_ties(config, f"{base}.embeddings.word_embeddings", "lm_head")
    return KeyMap((*head, *bert.body(f"{base}.")), aliases=(("", ""), ("", f"{base}.")), ties=ties)
