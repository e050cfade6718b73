"""Linear layers, stacks of experts and token embeddings with a low-rank update."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from operator import is_
from typing import Any, Literal, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import UsageError
from macllm.nn.linear import Embedding, dense_weight, packed_weight
from macllm.nn.linear import Linear as DenseLinear
from macllm.nn.moe import ExpertLinear, QuantizedExpertLinear
from macllm.nn.quantize import QUANTIZED, QuantizedEmbedding, QuantizedLinear, Recipe
from macllm.ops.linear import adapted, magnified
from macllm.ops.weights import AdaptedWeight

Adaptable = nn.Linear | nn.QuantizedLinear | ExpertLinear | QuantizedExpertLinear | nn.Embedding | nn.QuantizedEmbedding
EMBEDDINGS = nn.Embedding | nn.QuantizedEmbedding
Precision = Literal["stored", "8-bit", "unquantized"]
"""Quantization of a fused layer, if its base is quantized: as the base, 8 bits in groups, or none."""


class Update(NamedTuple):
    """Factors of a low-rank update, A (D, r) and B (r, F), its scale, and the magnitudes (F,) of DoRA.

    For a stack of experts A is (E, r, D), B (E, F, r), for an embedding A (V, r), B (r, D): the shapes are mlx-lm's.
    `head` is false for an embedding whose tied head keeps the weight of the base.
    """

    a: mx.array
    b: mx.array
    scale: float = 1.0
    magnitude: mx.array | None = None
    head: bool = True

    def scaled_b(self, scale: float) -> mx.array:
        """B for another scale of the same update, in float32 unless it stays as it is: 16 bits would round it."""
        return self.b if self.scale == scale else self.b.astype(mx.float32) * (self.scale / scale)


class LoRALinear(nn.Module):
    """linear(x) + scale * dropout(x) A B, with A (D, r) and B (r, F) trained and `linear` frozen."""

    def __init__(self, linear: Any, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float = 0.0):
        super().__init__()
        self.linear: Any = linear
        self.linear.freeze()
        self.scale, self.rate = scale, dropout
        self.lora_a, self.lora_b = lora_a, lora_b

    @property
    def update_weights(self) -> Update:
        """The trained weights, and the scale."""
        return Update(self["lora_a"], self["lora_b"], self.scale)

    @property
    def weights(self) -> AdaptedWeight:
        """The weight as ops take it."""
        dropout = self.rate if self.training else 0.0
        base = packed_weight(self.linear) if isinstance(self.linear, nn.QuantizedLinear) else dense_weight(self.linear)
        return AdaptedWeight(base, self["lora_a"], self["lora_b"], self.scale, dropout)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., F)."""
        return adapted(self.linear(x), x, self.weights)

    @classmethod
    def initial(cls, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> LoRALinear:
        """A layer with A from U(-1/sqrt(D), 1/sqrt(D)) and B = 0, so that outputs do not change at first."""
        inputs, outputs = sizes(linear)
        bound = 1 / math.sqrt(inputs)
        lora_a = mx.random.uniform(-bound, bound, (inputs, rank), key=key)
        return cls(linear, lora_a, mx.zeros((rank, outputs)), scale, dropout)

    def delta(self) -> mx.array:
        """The low-rank update of the weight: (F, D)."""
        return self.scale * (self.lora_a.astype(mx.float32) @ self.lora_b.astype(mx.float32)).T

    def merged(self) -> mx.array:
        """The weight with its update, in float32: (F, D)."""
        return unpacked_weight(self.linear).astype(mx.float32) + self.delta()

    def fused(self, precision: Precision = "stored") -> nn.Module:
        """A linear layer with the same outputs, but for the rounding of its weight."""
        linear: Any = self.linear
        weight = self.merged().astype(unpacked_weight(linear).dtype)
        if isinstance(linear, EMBEDDINGS):
            out: nn.Module = Embedding(*weight.shape)
        elif weight.ndim == 3:
            out = ExpertLinear(1, 1, 1)
        else:
            out = DenseLinear(weight.shape[1], weight.shape[0], bias="bias" in linear)
            if "bias" in linear:
                out.bias = linear["bias"]
        out.weight = weight
        return packed_as(out, linear, precision)


class _Gain:
    """The gain of a DoRA layer that does not train, and the arrays that it was computed from."""

    sources: tuple[mx.array, ...] = ()
    value: mx.array | None = None


class DoRALinear(LoRALinear):
    """DoRA (arXiv:2402.09353): a low-rank update, and trained norms of the adapted weight's rows.

    A row of the weight is magnitude * (W + scale * (A B)^T) / its norm. The norm gets no gradient, as in PEFT.
    """

    def __init__(
        self,
        linear: Any,
        lora_a: mx.array,
        lora_b: mx.array,
        scale: float,
        dropout: float = 0.0,
        magnitude: mx.array | None = None,
    ):
        super().__init__(linear, lora_a, lora_b, scale, dropout)
        # B = 0 at first: the norms are those of W
        self.magnitude = row_norms(unpacked_weight(linear)) if magnitude is None else magnitude
        self._gain = _Gain()

    @property
    def update_weights(self) -> Update:
        """The trained weights, and the scale."""
        return Update(self["lora_a"], self["lora_b"], self.scale, self["magnitude"])

    @property
    def weights(self) -> AdaptedWeight:
        """The weight as ops take it."""
        return super().weights._replace(gain=self.gain())

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., F)."""
        return magnified(x, self.weights)

    def gain(self) -> mx.array:
        """Factors of the outputs: the magnitudes over the norms of the adapted weight's rows: (F,).

        Rows of zeros, such as those that pad a matrix, stay zeros: their factor is 0.
        """
        kept, sources = self._gain, (self["lora_a"], self["lora_b"], self["magnitude"], self.linear["weight"])
        if not self.training and kept.value is not None and all(map(is_, kept.sources, sources)):
            return kept.value
        norms = mx.stop_gradient(row_norms(super().merged()))
        value = mx.where(norms > 0, self["magnitude"] / mx.where(norms > 0, norms, 1), 0)
        if not self.training:  # else the arrays are those of a gradient
            kept.sources, kept.value = sources, value
        return value

    def merged(self) -> mx.array:
        """The weight with its update, in float32: (F, D)."""
        return self.gain()[:, None] * super().merged()


def row_norms(weight: mx.array) -> mx.array:
    """Euclidean norms of a matrix's rows, in float32: (F, D) -> (F,)."""
    return mx.linalg.norm(weight.astype(mx.float32), axis=-1)


class LoRAExperts(LoRALinear):
    """Stacked linear layers of experts, each plus its own low-rank update.

    A (E, r, D) and B (E, F, r) are trained; the shapes are mlx-lm's.
    """

    @property
    def weights(self) -> AdaptedWeight:
        """The weights as ops take them."""
        dropout = self.rate if self.training else 0.0
        lora_a, lora_b = self["lora_a"].swapaxes(-1, -2), self["lora_b"].swapaxes(-1, -2)
        return AdaptedWeight(self.linear.weights, lora_a, lora_b, self.scale, dropout)

    @classmethod
    def initial(cls, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> LoRALinear:
        """As for a linear layer, for each expert."""
        inputs, outputs = sizes(linear)
        count, bound = linear.weight.shape[0], 1 / math.sqrt(inputs)
        lora_a = mx.random.uniform(-bound, bound, (count, rank, inputs), key=key)
        return cls(linear, lora_a, mx.zeros((count, outputs, rank)), scale, dropout)

    def delta(self) -> mx.array:
        """The low-rank updates of the weights: (E, F, D)."""
        return self.scale * (self.lora_b.astype(mx.float32) @ self.lora_a.astype(mx.float32))


class LoRAEmbedding(LoRALinear):
    """Token embeddings plus scale * A[tokens] B, with A (V, r) and B (r, D) trained.

    A tied head multiplies by the adapted matrix too, as after merging, unless `head` is false.
    """

    head = True

    @property
    def update_weights(self) -> Update:
        """The trained weights, and the scale."""
        return super().update_weights._replace(head=self.head)

    def __call__(self, tokens: mx.array) -> mx.array:
        """int (...) -> (..., D)."""
        y = self.linear(tokens)
        lora_a, lora_b = self._factors()
        return mx.addmm(y, lora_a[tokens], lora_b, alpha=self.scale).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """The head tied to these embeddings: (..., D) -> (..., V)."""
        y = self.linear.as_linear(x)
        if not self.head:
            return y
        lora_a, lora_b = self._factors()
        return mx.addmm(y, x @ lora_b.T, lora_a.T, alpha=self.scale).astype(y.dtype)

    def _factors(self) -> tuple[mx.array, mx.array]:
        """A and B in float32, as those of linear layers are multiplied."""
        return self["lora_a"].astype(mx.float32), self["lora_b"].astype(mx.float32)

    @classmethod
    def initial(cls, linear: Any, rank: int, scale: float, dropout: float, key: mx.array) -> LoRALinear:
        """A layer with A = 0 and B from N(0, 1), as in PEFT: a token's row moves once the token is seen."""
        inputs, outputs = sizes(linear)
        return cls(linear, mx.zeros((outputs, rank)), mx.random.normal((rank, inputs), key=key), scale, dropout)

    def delta(self) -> mx.array:
        """The low-rank update of the matrix: (V, D)."""
        return self.scale * (self.lora_a.astype(mx.float32) @ self.lora_b.astype(mx.float32))

    def fused(self, precision: Precision = "stored") -> nn.Module:
        """An embedding with the same outputs, but for the rounding of its weight."""
        if not self.head:
            raise UsageError(
                "an adapter of the embedding alone cannot be merged into a matrix that is the head's too",
                cause="PEFT trained it without ensure_weight_tying",
                remedy="use it as an adapter, or merge it with peft, which changes the head as well",
            )
        return super().fused(precision)


def matches(name: str, key: str) -> bool:
    """True if a pattern of layers names this one; it may be the end of the name."""
    return fnmatchcase(name, key) or fnmatchcase(name, f"*.{key}")


def layer_type(linear: Any, *, use_dora: bool = False) -> type[LoRALinear]:
    """The type of an adapted layer with this base. Raises UsageError for DoRA on a stack of experts."""
    special = isinstance(linear, ExpertLinear | QuantizedExpertLinear | EMBEDDINGS)
    if not special:
        return DoRALinear if use_dora else LoRALinear
    if use_dora:
        what = "embeddings" if isinstance(linear, EMBEDDINGS) else "a stack of experts"
        raise UsageError(f"DoRA cannot adapt {what}", remedy=f"keys without {what}, such as *.mixer.*, or no use_dora")
    return LoRAEmbedding if isinstance(linear, EMBEDDINGS) else LoRAExperts


def adapted_layer(linear: Any, update: Update) -> LoRALinear:
    """`linear` with a given update."""
    kind = layer_type(linear, use_dora=update.magnitude is not None)
    if update.magnitude is None:
        layer = kind(linear, update.a, update.b, update.scale)
        if isinstance(layer, LoRAEmbedding):
            layer.head = update.head
        return layer
    return DoRALinear(linear, update.a, update.b, update.scale, magnitude=update.magnitude)


def _recipe(linear: Any, precision: Precision) -> Recipe | None:
    """The quantization of a fused layer whose base is `linear`; None: not quantized."""
    if precision == "unquantized":
        return None
    stored = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    if precision == "stored" or (linear.bits == 8 and linear.mode == "affine"):
        return stored
    groups = (group for group in (64, 32) if sizes(linear)[0] % group == 0)
    group = linear.group_size if linear.mode == "affine" else next(groups, None)
    return None if group is None else {"group_size": group, "bits": 8, "mode": "affine"}


def packed_as(layer: Any, base: Any, precision: Precision) -> nn.Module:
    """A dense layer, quantized if `base` is."""
    recipe = _recipe(base, precision) if isinstance(base, QUANTIZED) else None
    if recipe is None:
        return layer
    if isinstance(layer, nn.Embedding):
        return QuantizedEmbedding.from_embedding(layer, **recipe)
    if isinstance(layer, ExpertLinear):
        return layer.to_quantized(**recipe)
    return QuantizedLinear.from_linear(layer, **recipe)


def unpacked_weight(linear: Any) -> mx.array:
    """The weight (F, D) of a linear layer, or (E, F, D) of experts, dequantized if packed."""
    return packed_weight(linear).dequantized() if isinstance(linear, QUANTIZED) else linear.weight


def sizes(linear: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs of a linear layer or of each expert, quantized or not."""
    outputs, inputs = linear.weight.shape[-2:]
    return (inputs * 32 // linear.bits if isinstance(linear, QUANTIZED) else inputs), outputs
