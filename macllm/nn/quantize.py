"""Weight quantization: a transform over the module tree, for loading and for converting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from macllm.errors import CheckpointError, UsageError
from macllm.ops.linear import linear
from macllm.ops.quantized import quantized_matmul, quantized_rows
from macllm.ops.weights import PackedWeight

from .linear import Embedding, Linear, packed_weight
from .moe import ExpertLinear, QuantizedExpertLinear

MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
_AFFINE_GROUPS = (32, 64, 128)

Recipe = dict[str, Any]  # bits, group_size, mode

QUANTIZED = nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedExpertLinear
"""Every layer type that holds packed weights."""


class QuantizedLinear(nn.QuantizedLinear):
    """MLX's layer with our quantized matmul."""

    @property
    def weights(self) -> PackedWeight:
        """The weight as ops take it."""
        return packed_weight(self)

    def __call__(self, x: mx.array) -> mx.array:
        """(..., D) -> (..., F)."""
        return linear(x, self.weights)


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """MLX's layer with our quantized matmul."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """int (...) -> (..., D)."""
        return quantized_rows(packed_weight(self), tokens)

    def as_linear(self, x: mx.array) -> mx.array:
        """The head tied to these embeddings: (..., D) -> (..., V)."""
        return quantized_matmul(x, packed_weight(self))


def prepare(model: nn.Module, names: Collection[str], whole: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Turn the layers whose scales are among `names` into quantized ones, ready for their weights.

    `whole` is a checkpoint's recipe, `overrides` those of single modules by our path. Raises CheckpointError
    for a recipe that MLX does not support.
    """
    default = _recipe(whole)

    def choose(path: str, module: nn.Module) -> Recipe | None:
        if f"{path}.scales" not in names:
            return None
        own = overrides.get(path)
        return _recipe(own) if isinstance(own, Mapping) else default

    _transform(model, choose)


def apply(model: nn.Module, *, bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> None:
    """Quantize every linear, embedding and expert layer whose rows are whole groups, in place.

    Routers are not quantized. Raises UsageError for a recipe that MLX does not support.
    """
    try:
        recipe = _recipe({"bits": bits, "group_size": group_size, "mode": mode})
    except CheckpointError as error:
        raise UsageError(error.message) from None

    def choose(path: str, module: nn.Module) -> Recipe | None:
        able = hasattr(module, "to_quantized") and module["weight"].shape[-1] % recipe["group_size"] == 0
        return recipe if able and not path.endswith((".router", ".positions.table", ".token_types")) else None

    _transform(model, choose)


def _transform(model: nn.Module, choose: Callable[[str, nn.Module], Recipe | None]) -> None:
    def quantized(path: str, module: nn.Module) -> nn.Module:
        recipe = choose(path, module)
        if recipe is None:
            return module
        if isinstance(module, nn.Linear):
            return QuantizedLinear.from_linear(module, **recipe)
        if isinstance(module, nn.Embedding):
            return QuantizedEmbedding.from_embedding(module, **recipe)
        packed: nn.Module = module.to_quantized(**recipe)  # pyright: ignore[reportOptionalCall]
        return packed

    model.update_modules(tree_map_with_path(quantized, model.leaf_modules(), is_leaf=nn.Module.is_module))


def remove(model: nn.Module) -> None:
    """Unpack every quantized layer, in place: floating-point weights of the same values."""
    leaves = model.leaf_modules()
    model.update_modules(tree_map(unpacked, leaves, is_leaf=nn.Module.is_module))


def unpacked(module: nn.Module) -> nn.Module:
    """A layer with the floating-point weights of a quantized one; any other as it is."""
    if not isinstance(module, QUANTIZED):
        return module
    weight = packed_weight(module).dequantized()
    if isinstance(module, QuantizedExpertLinear):
        out: nn.Module = ExpertLinear(1, 1, 1)
    elif isinstance(module, nn.QuantizedEmbedding):
        out = Embedding(1, 1)
    else:
        out = Linear(1, 1, bias="bias" in module)
    out.weight = weight
    if "bias" in module:
        out.bias = module["bias"]
    return out


def describe(model: nn.Module) -> tuple[Recipe, dict[str, Recipe]] | None:
    """The most common recipe of a model's quantized layers, and the others by path; None if not quantized."""
    leaves = dict(tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)).items()
    found = {path: _of(module) for path, module in leaves if isinstance(module, QUANTIZED)}
    if not found:
        return None
    recipes = list(found.values())
    whole = max(recipes, key=recipes.count)
    return whole, {path: recipe for path, recipe in found.items() if recipe != whole}


def _of(module: nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedExpertLinear) -> Recipe:
    return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}


def _recipe(given: Mapping[str, Any]) -> Recipe:
    mode = given.get("mode") or "affine"
    if mode not in MODES:
        raise CheckpointError(f"quantization mode {mode!r} is not one of {', '.join(MODES)}")
    group, bits = given.get("group_size") or MODES[mode][0], given.get("bits") or MODES[mode][1]
    if mode == "affine":
        if bits not in _AFFINE_BITS or group not in _AFFINE_GROUPS:
            raise CheckpointError(
                f"{bits} bits in groups of {group} are not supported: bits are {_AFFINE_BITS}, groups {_AFFINE_GROUPS}"
            )
    elif (group, bits) != MODES[mode]:
        raise CheckpointError(f"{mode} has {MODES[mode][1]} bits in groups of {MODES[mode][0]}, not {bits} in {group}")
    return {"group_size": group, "bits": bits, "mode": mode}
