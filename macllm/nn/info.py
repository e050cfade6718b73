"""Facts about a loaded model: kind, sizes, end tokens, configs. No arrays."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from .spec import (
    BlockSparseSpec,
    Causal,
    Chunked,
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    LabelSpec,
    LayerSpec,
    ModelSpec,
    PerformerSpec,
    RoPESpec,
    Sliding,
    WindowGlobalSpec,
)

ModelKind = Literal["decoder", "encoder", "encoder-decoder"]


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class KVLayer:
    """Keys and values that a layer keeps for each of the newest `window` tokens, or of all."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model's kind, vocabulary, context and end tokens, and the configs of its checkpoint.

    `vocab_size` counts the tokens that the model predicts; `source_vocab_size` those that an encoder-decoder
    reads, if its encoder has a separate table. None means unknown.
    """

    kind: ModelKind = "decoder"
    vocab_size: int | None = None
    source_vocab_size: int | None = None
    context_length: int | None = None  # tokens, prompt and completion together
    position_count: int | None = None  # rows of the table of positions, a hard limit; None: no table
    hidden_size: int | None = None  # None: the model returns no hidden states
    eos: frozenset[int] = frozenset()
    decoder_start: int | None = None
    labels: LabelSpec | None = None  # the head that classifies texts or tokens
    has_global_tokens: bool = False  # calls take `global_tokens`, which see all tokens and are seen by all
    rotations: frozenset[RoPESpec] = frozenset()
    packs: bool = False  # `hidden` takes `segments`: sequences one after another, none of which sees another
    kv_layers: tuple[KVLayer, ...] = ()  # of layers with keys and values; empty: unknown, or none
    config: Mapping[str, Any] = field(default_factory=_empty, repr=False)
    generation_config: Mapping[str, Any] = field(default_factory=_empty, repr=False)
    folder: Path | None = field(default=None, compare=False, repr=False)  # of the checkpoint

    @property
    def prompt_vocab_size(self) -> int | None:
        """Size of the vocabulary of prompts."""
        return self.source_vocab_size or self.vocab_size

    def rotation_class(self, length: int) -> Hashable:
        """Equal for lengths (in tokens) with equal rotary angles at every position; None if all lengths have.

        Keys rotated for one class are wrong in another.
        """
        return frozenset((rope, rope.length_class(length)) for rope in self.rotations) or None


def describe(spec: ModelSpec) -> ModelInfo:
    """The facts that follow from a spec alone."""
    match spec:
        case DecoderSpec():
            # without a head it cannot generate, only encode
            kind = "encoder" if spec.head is None else "decoder"
            embedding, layers = spec.embedding, spec.decoder.layers
        case EncoderSpec():
            kind, embedding, layers = "encoder", spec.embedding, spec.encoder.layers
        case EncoderDecoderSpec():
            kind, embedding, layers = "encoder-decoder", spec.target, spec.decoder.layers
    return ModelInfo(
        kind=kind,
        vocab_size=embedding.vocab_size,
        source_vocab_size=spec.source.vocab_size if isinstance(spec, EncoderDecoderSpec) else None,
        context_length=spec.context_length,
        position_count=None if embedding.positions is None else embedding.positions.count,
        hidden_size=None if kind == "encoder-decoder" else embedding.dim,
        labels=None if isinstance(spec, EncoderDecoderSpec) else spec.labels,
        has_global_tokens=any(isinstance(layer.mixer, WindowGlobalSpec) for layer in layers),
        kv_layers=tuple(_kv_layer(layer) for layer in layers if not isinstance(layer.mixer, PerformerSpec)),
        packs=kind == "decoder" and all(map(_packs, layers)),
        rotations=frozenset(rope for layer in layers if (rope := _length_dependent(layer)) is not None),
    )


def _packs(layer: LayerSpec) -> bool:
    """True for a layer whose mixer sees nothing to the right, so that padding there changes nothing."""
    causal = isinstance(layer.mixer.mask, Causal | Sliding | Chunked)
    return causal and not isinstance(layer.mixer, BlockSparseSpec | WindowGlobalSpec) and layer.cross_attention is None


def _kv_layer(layer: LayerSpec) -> KVLayer:
    match layer.mixer.mask:
        case Sliding(window=window) | Chunked(size=window):
            return KVLayer(layer.mixer.num_kv_heads, layer.mixer.head_dim, window)
    return KVLayer(layer.mixer.num_kv_heads, layer.mixer.head_dim)


def _length_dependent(layer: LayerSpec) -> RoPESpec | None:
    rope = layer.mixer.rope
    return rope if rope is not None and rope.depends_on_length else None


@runtime_checkable
class Described(Protocol):
    """Anything with a `ModelInfo`: a model of ours or of mlx-lm's."""

    info: ModelInfo
