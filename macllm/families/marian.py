"""Marian: the Transformer of 2017, sinusoidal positions, norms after each sum. arXiv:1706.03762, arXiv:1804.00344."""

from __future__ import annotations

from macllm.nn.spec import EncoderDecoderSpec, SinusoidalPositions
from macllm.weights.keymap import AnyRule, Drop, KeyMap, Rule

from . import bart
from .config import Config


def spec(config: Config) -> EncoderDecoderSpec:
    """The spec that `config` describes."""
    # Unlike the paper's, its sines all come before its cosines.
    positions = SinusoidalPositions(count=config["max_position_embeddings"], interleaved=False)
    target_size = config.get("decoder_vocab_size", config["vocab_size"])
    source, target = bart.embed(config, positions, None), bart.embed(config, positions, None, target_size)
    return bart.text_to_text(config, source, target, shared=config.get("share_encoder_decoder_embeddings", True))


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    tables: tuple[AnyRule, ...]
    if config.get("share_encoder_decoder_embeddings", True):
        tables = (
            Rule("model.shared.*", "embedding.tokens.*"),
            Drop("model.encoder.embed_tokens.weight"),
            Drop("model.decoder.embed_tokens.weight"),
        )
    else:
        tables = (
            Rule("model.encoder.embed_tokens.*", "embedding.tokens.*"),
            Rule("model.decoder.embed_tokens.*", "target_embedding.tokens.*"),
        )
    sines = (Drop("model.encoder.embed_positions.weight"), Drop("model.decoder.embed_positions.weight"))
    return KeyMap((*tables, *sines, *bart.layers(config)), aliases=(("", ""), ("", "model.")))
