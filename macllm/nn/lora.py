"""Low-rank adaptation (arXiv:2106.09685): frozen linear layers plus a trainable low-rank update.

Transforms over the module tree, in place: `apply` replaces linear layers, dense or quantized, with LoRA layers;
`remove` restores the linear layers, `Disabled` for a while; `fuse` adds the updates to their weights.
"""

from __future__ import annotations

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
from .quantize import QuantizedLinear, Recipe

_LAYER = re.compile(r"(.*\.)?layers\.(\d+)\.")

# Routers keep their choice of experts, unless a pattern names them.
_ROUTERS = ("*.router", "*.gate")


Linear = nn.Linear | nn.QuantizedLinear
Precision = Literal["stored", "8-bit", "unquantized"]
"""Quantization of a fused layer, if its base is quantized: as the base, 8 bits in groups, or none."""


class LoRALinear(nn.Module):
    """linear(x) + scale * dropout(x) A B, with A (D, r) and B (r, F) trained and `linear` frozen."""

    def __init__(self, linear: Linear, lora_a: mx.array, lora_b: mx.array, scale: float, dropout: float = 0.0):
        super().__init__()
        self.linear = linear
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

    def delta(self) -> mx.array:
        """The low-rank update of the weight: (F, D)."""
        return self.scale * (self.lora_a.astype(mx.float32) @ self.lora_b.astype(mx.float32)).T

    def fused(self, precision: Precision = "stored") -> nn.Module:
        """A linear layer with the same outputs, but for the rounding of its weight."""
        linear, dense = self.linear, unpacked_weight(self.linear)
        out = DenseLinear(dense.shape[1], dense.shape[0], bias="bias" in linear)
        out.weight = (dense.astype(mx.float32) + self.delta()).astype(dense.dtype)
        if "bias" in linear:
            out.bias = linear.bias
        recipe = _recipe(linear, precision) if isinstance(linear, nn.QuantizedLinear) else None
        return out if recipe is None else QuantizedLinear.from_linear(out, **recipe)


def _recipe(linear: nn.QuantizedLinear, precision: Precision) -> Recipe | None:
    """The quantization of a fused layer whose base is `linear`; None: not quantized."""
    if precision == "unquantized":
        return None
    stored = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    if precision == "stored" or (linear.bits == 8 and linear.mode == "affine"):
        return stored
    groups = (group for group in (64, 32) if sizes(linear)[0] % group == 0)
    group = linear.group_size if linear.mode == "affine" else next(groups, None)
    return None if group is None else {"group_size": group, "bits": 8, "mode": "affine"}


def unpacked_weight(linear: Linear) -> mx.array:
    """The weight (F, D) of a linear layer, dequantized if packed."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def sizes(linear: Linear) -> tuple[int, int]:
    """Numbers of inputs and outputs of a linear layer, quantized or not."""
    outputs, inputs = linear.weight.shape
    return (inputs * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else inputs), outputs


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
    """Freeze `model` and adapt the linear layers of its blocks, in place; returns their names.

    `keys` are patterns of names (`*.mixer.q_proj`; a bare `q_proj` matches the end of one); without any, all are
    adapted. `num_layers` limits them to the last blocks of each stack; -1 means all. A is drawn from
    U(-1/sqrt(D), 1/sqrt(D)) and B is 0, so that outputs do not change at first. Raises UsageError if no name matches.
    """
    chosen = targets(model, keys, num_layers)
    if not chosen:
        raise UsageError(
            "no linear layer to adapt",
            cause=f"nothing matches {', '.join(keys)}" if keys else "the model's blocks have no linear layers",
            remedy=f"patterns such as {', '.join(sorted({'*.' + n.rsplit('.', 1)[-1] for n in targets(model)}))}",
        )
    model.freeze()
    adapted_layers = {}
    for name, key in zip(chosen, mx.random.split(mx.random.key(seed), len(chosen)), strict=True):
        inputs, outputs = sizes(chosen[name])
        bound = 1 / math.sqrt(inputs)
        lora_a = mx.random.uniform(-bound, bound, (inputs, rank), key=key)
        adapted_layers[name] = LoRALinear(chosen[name], lora_a, mx.zeros((rank, outputs)), alpha / rank, dropout)
    replace(model, adapted_layers)
    return list(adapted_layers)


def targets(model: nn.Module, keys: Sequence[str] = (), num_layers: int = -1) -> dict[str, Linear]:
    """The linear layers that `apply` would adapt, by name, in order."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and _LAYER.match(name) and not name.endswith(".linear")
    }
    depth: dict[str, int] = {}
    for name in linears:
        stack, layer = _position(name)
        depth[stack] = max(depth.get(stack, 0), layer + 1)
    return {
        name: linears[name]
        for name in sorted(linears, key=lambda n: (_position(n), n))
        if _matches(name, keys) and (num_layers < 0 or _position(name)[1] >= depth[_position(name)[0]] - num_layers)
    }


def _matches(name: str, keys: Sequence[str]) -> bool:
    if not keys:
        return not any(fnmatchcase(name, pattern) for pattern in _ROUTERS)
    return any(fnmatchcase(name, key) or fnmatchcase(name, f"*.{key}") for key in keys)


def _position(name: str) -> tuple[str, int]:
    """The stack and the layer number in a parameter's name."""
    match = _LAYER.match(name)
    assert match is not None, name
    return match[1] or "", int(match[2])


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


def attach(model: nn.Module, factors: Mapping[str, tuple[mx.array, mx.array]], scale: float) -> None:
    """Freeze `model` and adapt the named linear layers with given A (D, r) and B (r, F), in place.

    Raises CheckpointError for a name that is not a linear layer of the model, or a shape that does not fit it.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}
    adapted_layers = {}
    for name, (lora_a, lora_b) in factors.items():
        if name not in linears:
            raise CheckpointError(
                f"the adapter changes {name}, which is not a linear layer of this model",
                remedy="load the model that the adapter was made for",
            )
        inputs, outputs = sizes(linears[name])
        if lora_a.ndim != 2 or lora_b.ndim != 2 or lora_a.shape[1] != lora_b.shape[0]:
            raise CheckpointError(
                f"the adapter's factors of {name} do not match: A is {lora_a.shape}, B is {lora_b.shape}"
            )
        if (lora_a.shape[0], lora_b.shape[1]) != (inputs, outputs):
            raise CheckpointError(
                f"the adapter's {name} maps {lora_a.shape[0]} to {lora_b.shape[1]}, the model's {inputs} to {outputs}",
                remedy="load the model that the adapter was made for",
            )
        adapted_layers[name] = LoRALinear(linears[name], lora_a, lora_b, scale)
    model.freeze()
    replace(model, adapted_layers)


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
