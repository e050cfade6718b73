"""Specs: transformer architectures as data.

A `ModelSpec` has all that the forward pass needs, and no model names or checkpoint keys. `families/` makes a spec from
a checkpoint's `config.json`; `nn/models.py` makes a model from a spec. The defaults are those of a plain modern
decoder; sizes have no default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_quick", "relu", "relu_squared", "tanh"]
Placement = Literal["pre", "post", "branch", "sandwich"]


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """RMSNorm or LayerNorm over the last axis."""

    kind: Literal["rms", "layer"]
    eps: float
    weight: bool = True
    unit_offset: bool = False  # scale by (1 + weight)
    bias: bool = False


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: positions divided by `factor` (arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """NTK-aware base that grows with the length once it passes `trained` positions."""

    factor: float
    trained: int


@dataclass(frozen=True)
class BandScaling:
    """Long wavelengths stretched by `factor`, short ones kept, a blend between (arXiv:2407.21783, 3.4)."""

    factor: float
    low: float
    high: float
    trained: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): interpolation by frequency band, and a temperature on the scores."""

    factor: float
    trained: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class LongScaling:
    """LongRoPE (arXiv:2402.13753): one factor per frequency up to `trained` positions, another beyond."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    magnitude: float = 1.0


RoPEScaling = LinearScaling | DynamicScaling | BandScaling | YarnScaling | LongScaling


@dataclass(frozen=True, kw_only=True)
class RoPESpec:
    """Rotary positions over the first `dims` of each head."""

    dims: int
    base: float = 10_000.0
    interleaved: bool = False  # pairs (0,1),(2,3).. instead of (0,d/2),(1,d/2+1)..
    scaling: RoPEScaling | None = None

    @property
    def depends_on_length(self) -> bool:
        """True if the angles of a position depend on the length of its sequence."""
        return isinstance(self.scaling, DynamicScaling | LongScaling)

    def length_class(self, length: int) -> int:
        """A number equal for all lengths with equal rotary angles, so that their table is made once."""
        match self.scaling:
            case DynamicScaling(_, trained):
                return max(length, trained)
            case LongScaling(trained=trained):
                return trained + 1 if length > trained else 0
            case _:
                return 0


@dataclass(frozen=True)
class Causal:
    """Every key up to the query's own."""


@dataclass(frozen=True)
class Sliding:
    """The newest `window` keys, the query's own included."""

    window: int


@dataclass(frozen=True)
class Chunked:
    """Keys up to the query's own, inside its block of `size` positions."""

    size: int


@dataclass(frozen=True)
class Bidirectional:
    """Every key."""


@dataclass(frozen=True)
class Local:
    """Keys fewer than `window` positions away, on either side."""

    window: int


MaskSpec = Causal | Sliding | Chunked | Bidirectional | Local


@dataclass(frozen=True, kw_only=True)
class QKNormSpec:
    """A norm on queries and keys before they rotate: over each head, or over the whole projection."""

    norm: NormSpec
    over: Literal["head", "projection"]


@dataclass(frozen=True, kw_only=True)
class TemperatureSpec:
    """Query scale by position: 1 + scale * log(1 + floor((position + 1) / floor)) (arXiv:2501.19399)."""

    floor: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Multi-head, grouped-query (K < H) or multi-query (K = 1) attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    mask: MaskSpec
    rope: RoPESpec | None = None
    qk_norm: QKNormSpec | None = None
    temperature: TemperatureSpec | None = None
    logit_softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class WindowGlobalSpec(AttentionSpec):
    """A two-sided window, and global tokens named in the call (arXiv:2004.05150, 3.1)."""

    mask: Local


@dataclass(frozen=True, kw_only=True)
class BlockSparseSpec(AttentionSpec):
    """Query blocks that see few key blocks (arXiv:2007.14062, 2): neighbours, both ends, random ones."""

    block_size: int
    num_random_blocks: int
    seed: int  # of the random blocks
    max_positions: int  # for some lengths, random blocks are drawn as for this many positions

    @property
    def longest_full(self) -> int:
        """The longest sequence, in tokens, with full attention."""
        return (5 + 2 * self.num_random_blocks) * self.block_size


@dataclass(frozen=True, kw_only=True)
class PerformerSpec(AttentionSpec):
    """Attention in linear time by positive random features (arXiv:2009.14794)."""

    num_features: int
    seed: int  # of the features of a new model


@dataclass(frozen=True, kw_only=True)
class MLPSpec:
    """down(act(up(x))), or down(act(gate(x)) * up(x)) when gated (arXiv:2002.05202)."""

    hidden: int
    activation: Activation
    gated: bool
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """`top_k` of `num_experts` gated MLPs for each token, and an optional shared expert."""

    expert: MLPSpec
    num_experts: int
    top_k: int
    router: Literal["softmax", "sigmoid"]
    renormalize: bool = False  # weights of the chosen sum to 1
    weigh: Literal["output", "input"] = "output"
    shared: MLPSpec | None = None


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The mixer of tokens, cross-attention if any, feed-forward, and the placement of their norms."""

    mixer: AttentionSpec
    feed_forward: MLPSpec | MoESpec
    norm: NormSpec
    placement: Placement = "pre"
    cross_attention: AttentionSpec | None = None


@dataclass(frozen=True, kw_only=True)
class RelativeBiasSpec:
    """Bucketed relative positions added to the scores (arXiv:1910.10683, 2.1)."""

    num_buckets: int
    max_distance: int
    num_heads: int
    bidirectional: bool


@dataclass(frozen=True, kw_only=True)
class LinearBiasSpec:
    """A penalty on the scores that grows with the distance, by head: ALiBi (arXiv:2108.12409)."""

    num_heads: int


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """Layers in a row."""

    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    relative_bias: RelativeBiasSpec | LinearBiasSpec | None = None


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """A table of `count` positions; position 0 reads row `offset`."""

    count: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Fixed sines and cosines (arXiv:1706.03762, 3.5): interleaved as in the paper, or all sines first."""

    count: int
    interleaved: bool = True


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """Tokens to vectors: a table, positions added, segments added, a norm."""

    vocab_size: int
    dim: int
    scale: float = 1.0
    positions: LearnedPositions | SinusoidalPositions | None = None
    token_types: int | None = None
    norm: NormSpec | None = None


@dataclass(frozen=True, kw_only=True)
class TransformSpec:
    """A dense layer, an activation and a norm before the output head of masked language models."""

    activation: Activation
    norm: NormSpec


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Hidden states to logits."""

    tied: bool
    scale: float = 1.0
    softcap: float | None = None
    bias: bool = False
    transform: TransformSpec | None = None


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """A head with one output for each label, over all tokens or over one state of a sequence.

    That is the state of the first token, of the last one that is not `padding`, or the pooler's output.
    """

    count: int
    reads: Literal["each", "first", "last", "pooled"]
    dense: Activation | None = None  # of a dense layer before the output
    bias: bool = True
    padding: int | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A causal language model; without a `head` it returns hidden states, and with `labels` their logits."""

    embedding: EmbeddingSpec
    decoder: StackSpec
    head: HeadSpec | None
    labels: LabelSpec | None = None
    context_length: int | None = None  # positions it was trained for; None: no known limit


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """A bidirectional encoder; `head` predicts masked tokens, `pooler` is dense and tanh on the first one."""

    embedding: EmbeddingSpec
    encoder: StackSpec
    head: HeadSpec | None = None
    pooler: bool = False
    labels: LabelSpec | None = None
    context_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderSpec:
    """An encoder-decoder. `shared`: encoder and decoder have one token table."""

    source: EmbeddingSpec
    target: EmbeddingSpec
    encoder: StackSpec
    decoder: StackSpec
    head: HeadSpec
    shared: bool = True
    context_length: int | None = None


ModelSpec = DecoderSpec | EncoderSpec | EncoderDecoderSpec
