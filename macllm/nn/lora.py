"""Low-rank adaptation (arXiv:2106.09685): frozen linear layers plus a trainable low-rank update.

Transforms over the module tree, in place: `apply` replaces linear layers, dense or quantized, with LoRA layers;
`remove` restores the linear layers, `Disabled` for a while; `fuse` adds the updates to their weights.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macllm.errors import CheckpointError, UsageError
from macllm.ops.linear import adapted
from macllm.ops.weights import AdaptedWeight

from .linear import Linear as DenseLinear
from .linear import dense_weight, packed_weight
from .moe import ExpertLinear, QuantizedExpertLinear
from .quantize import QUANTIZED, QuantizedLinear, Recipe

_LAYER = re.compile(r"(.*\.)?layers\.(\d+)\.")

# Routers keep their choice of experts, unless a pattern names them.
_ROUTERS = ("*.router", "*.gate")


Adaptable = nn.Linear | nn.QuantizedLinear | ExpertLinear | QuantizedExpertLinear
Precision = Literal["stored", "8-bit", "unquantized"]
"""Quantization of a fused layer, if its base is quantized: as the base, 8 bits in groups, or none."""


class LoRALinear(nn.Module):
    """linear(x) + scale * dropout(x) A B, with A (D, r) and B (r, F) trained and `linear` frozen."""

    def __init__(self, linear: Any, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float = 0.0):
        super().__init__()
        self.linear: Any = linear
        self.linear.freeze()
        self.scale, self.rate = scale, dropout
        self.lora_a, self.lora_b = lora_a, lora_b

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

    def fused(self, precision: Precision = "stored") -> nn.Module:
        """A linear layer with the same outputs, but for the rounding of its weight."""
        linear: Any = self.linear
        dense = unpacked_weight(linear)
        weight = (dense.astype(mx.float32) + self.delta()).astype(dense.dtype)
        recipe = _recipe(linear, precision) if isinstance(linear, QUANTIZED) else None
        if weight.ndim == 3:
            stack = ExpertLinear(1, 1, 1)
            stack.weight = weight
            return stack if recipe is None else stack.to_quantized(**recipe)
        out = DenseLinear(dense.shape[1], dense.shape[0], bias="bias" in linear)
        out.weight = weight
        if "bias" in linear:
            out.bias = linear["bias"]
        return out if recipe is None else QuantizedLinear.from_linear(out, **recipe)


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


def layer_type(linear: Any) -> type[LoRALinear]:
    """The type of an adapted layer with this base."""
    return LoRAExperts if isinstance(linear, ExpertLinear | QuantizedExpertLinear) else LoRALinear


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


def unpacked_weight(linear: Any) -> mx.array:
    """The weight (F, D) of a linear layer, or (E, F, D) of experts, dequantized if packed."""
    return packed_weight(linear).dequantized() if isinstance(linear, QUANTIZED) else linear.weight


def sizes(linear: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs of a linear layer or of each expert, quantized or not."""
    outputs, inputs = linear.weight.shape[-2:]
    return (inputs * 32 // linear.bits if isinstance(linear, QUANTIZED) else inputs), outputs


def apply(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    keys: Sequence[str] = (),
    num_layers: int = -1,
    seed: int = 0,
) -> list[str]:
    """Freeze `model` and adapt the linear layers and experts of its blocks, in place.

    Returns their names. `keys` are patterns of names (`*.mixer.q_proj`; a bare `q_proj` matches the end of one);
    without any, all are
    adapted but the routers. A pattern may name the head too. `num_layers` limits them to the last blocks of each stack;
    -1 means all. Outputs do not change at first. Raises UsageError for a pattern that matches nothing.
    """
    chosen = targets(model, keys, num_layers)
    model.freeze()
    adapted_layers = {}
    for name, key in zip(chosen, mx.random.split(mx.random.key(seed), len(chosen)), strict=True):
        linear = chosen[name]
        adapted_layers[name] = layer_type(linear).initial(linear, rank, alpha / rank, dropout, key)
    replace(model, adapted_layers)
    return list(adapted_layers)


def targets(model: nn.Module, keys: Sequence[str] = (), num_layers: int = -1) -> dict[str, Adaptable]:
    """The layers that `apply` would adapt, by name, in order. Raises UsageError as it does."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Adaptable) and not name.endswith(".linear")
    }
    blocks = [name for name in layers if _LAYER.match(name)]
    for key in keys:
        if not any(_matches(name, key) for name in layers):
            raise _unmatched(key, layers)
    if not blocks:
        raise UsageError("no linear layer to adapt", cause="the model's blocks have no linear layers")
    depth: dict[str, int] = {}
    for name in blocks:
        stack, layer = _position(name)
        depth[stack] = max(depth.get(stack, 0), layer + 1)
    last = [n for n in blocks if num_layers < 0 or _position(n)[1] >= depth[_position(n)[0]] - num_layers]
    if not keys:
        chosen = [name for name in last if not any(fnmatchcase(name, pattern) for pattern in _ROUTERS)]
    else:
        others = [name for name in layers if name not in blocks]
        chosen = [name for name in (*last, *others) if any(_matches(name, key) for key in keys)]
        if not chosen:
            raise UsageError(f"nothing in the last {num_layers} layers matches {', '.join(keys)}")
    return {name: layers[name] for name in sorted(chosen, key=lambda n: (_position(n), n))}


def _unmatched(key: str, layers: Mapping[str, object]) -> UsageError:
    """The error for a pattern without a layer, with the most similar names."""
    ends = sorted({re.sub(r".*layers\.\d+\.", "*.", name) for name in layers})
    short = {end.rsplit(".", 1)[-1]: end for end in ends} | {end: end for end in ends}
    near = dict.fromkeys(short[name] for name in difflib.get_close_matches(key, short, n=6, cutoff=0.4))
    return UsageError(
        f"no linear layer to adapt for the pattern {key!r}",
        cause="no name of a linear layer or of a stack of experts matches it; embeddings and norms cannot be adapted",
        remedy=f"patterns such as {', '.join([*near, *(end for end in ends if end not in near)][:12])}",
    )


def _matches(name: str, key: str) -> bool:
    return fnmatchcase(name, key) or fnmatchcase(name, f"*.{key}")


def _position(name: str) -> tuple[str, int]:
    """The stack and the layer number in a parameter's name; outside of the layers, behind all of them."""
    match = _LAYER.match(name)
    return ("~", 0) if match is None else (match[1] or "", int(match[2]))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The LoRA layers of `model`, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


class Disabled:
    """A context, to be entered as often as wanted, in which a model's LoRA layers are their base layers."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [(*_place(model, name), layer) for name, layer in adapters(model).items()]

    def __enter__(self) -> None:
        for parent, name, layer in self._layers:
            parent[name] = layer.linear

    def __exit__(self, *error: object) -> None:
        for parent, name, layer in self._layers:
            parent[name] = layer


def _place(model: nn.Module, name: str) -> tuple[Any, Any]:
    """The module or list with the named module, and its key in there."""
    parent: Any = model
    keys = [int(part) if part.isdecimal() else part for part in name.split(".")]
    for key in keys[:-1]:
        parent = parent[key]
    return parent, keys[-1]


def attach(
    model: nn.Module, factors: Mapping[str, tuple[mx.array, mx.array]], scale: float | Mapping[str, float]
) -> None:
    """Freeze `model` and adapt the named linear layers with given A (D, r) and B (r, F), in place.

    For a stack of experts A is (E, r, D), B (E, F, r). Raises CheckpointError for a name that is not a linear layer of
    the model, or a shape that does not fit it.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Adaptable)}
    adapted_layers = {}
    for name, (lora_a, lora_b) in factors.items():
        if name not in layers:
            raise CheckpointError(
                f"the adapter changes {name}, which is not a linear layer of this model",
                remedy="load the model that the adapter was made for",
            )
        kind = layer_type(layers[name])
        _check_shapes(name, layers[name], lora_a, lora_b)
        adapted_layers[name] = kind(
            layers[name], lora_a, lora_b, scale if isinstance(scale, int | float) else scale[name]
        )
    model.freeze()
    replace(model, adapted_layers)


def _check_shapes(name: str, linear: Any, lora_a: mx.array, lora_b: mx.array) -> None:
    inputs, outputs = sizes(linear)
    if lora_a.ndim != linear.weight.ndim or lora_b.ndim != lora_a.ndim:
        raise CheckpointError(f"the adapter's factors of {name} do not match: A is {lora_a.shape}, B is {lora_b.shape}")
    if lora_a.ndim == 3:
        count = linear.weight.shape[0]
        if lora_a.shape[0] != count or lora_b.shape[0] != count:
            raise CheckpointError(f"the adapter's {name} has {lora_a.shape[0]} experts, the model's {count}")
        lora_a, lora_b = lora_a[0].T, lora_b[0].T
    if lora_a.shape[1] != lora_b.shape[0]:
        raise CheckpointError(f"the adapter's factors of {name} do not match: A is {lora_a.shape}, B is {lora_b.shape}")
    if (lora_a.shape[0], lora_b.shape[1]) != (inputs, outputs):
        raise CheckpointError(
            f"the adapter's {name} maps {lora_a.shape[0]} to {lora_b.shape[1]}, the model's {inputs} to {outputs}",
            remedy="load the model that the adapter was made for",
        )


def remove(model: nn.Module) -> None:
    """Remove every LoRA layer, in place: the model as before `apply`."""
    replace(model, {name: layer.linear for name, layer in adapters(model).items()})


def fuse(model: nn.Module, dequantize: bool = False, *, precision: Precision = "stored") -> None:
    """Merge every LoRA update into its base layer, in place.

    `dequantize` is short for the precision "unquantized" of the adapted layers. What quantizing again costs,
    `macllm.adapter.merge` measures.
    """
    chosen: Precision = "unquantized" if dequantize else precision
    replace(model, {name: layer.fused(chosen) for name, layer in adapters(model).items()})


def replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put `modules` in the places that their names say, in place."""
    if modules:
        model.update_modules(tree_unflatten(list(modules.items())))
