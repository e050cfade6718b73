"""Marian (arXiv:1804.00344): the Transformer of arXiv:1706.03762, sinusoidal positions, post-norm."""

from __future__ import annotations

from typing import Any

from macllm.nn.position import sinusoids
from macllm.nn.spec import EncoderDecoderSpec, LearnedPositions, SinusoidalPositions
from macllm.weights.keymap import Computed, KeyMap, Rule, Tie

from . import bart
from .config import Config


def spec(config: Config) -> EncoderDecoderSpec:
    """The spec that `config` describes."""
    # Unlike in the paper, all sines come before all cosines.
    sines = _sines(config)
    # A stored table with other values is loaded, as in transformers.
    learned = {
        side: config.has_tensor(f"{side}.embed_positions.weight", default=False) for side in ("encoder", "decoder")
    }
    table = LearnedPositions(count=sines.count)
    target_size = None if config["share_encoder_decoder_embeddings"] else config.get("decoder_vocab_size")
    source = bart.embed(config, table if learned["encoder"] else sines, None)
    target = bart.embed(config, table if learned["decoder"] else sines, None, target_size)
    return bart.text_to_text(config, source, target)


def _sines(config: Config) -> SinusoidalPositions:
    return SinusoidalPositions(count=config.positions("encoder.embed_positions.weight"), interleaved=False)


def keys(config: Config) -> KeyMap:
    """Tensor names of a checkpoint with this config."""
    if config["share_encoder_decoder_embeddings"]:
        ties: tuple[Tie, ...] = (bart.shared_table(config),)
    else:
        ties = (
            (Tie(source="model.decoder.embed_tokens", heads=("lm_head",)),) if config.get("tie_word_embeddings") else ()
        )
    both = (("encoder", "embedding"), ("decoder", "target_embedding"))
    positions = tuple(Rule(f"model.{side}.embed_positions.*", f"{ours}.positions.table.*") for side, ours in both)

    def sines() -> Any:
        return sinusoids(config["d_model"], _sines(config))

    return KeyMap(
        (*bart.tables(config), *positions, *bart.layers()),
        aliases=bart.ALIASES,
        ties=ties,
        computed=tuple(Computed(f"model.{side}.embed_positions.weight", sines) for side, _ in both),
    )
