"""Modules that are trained whole beside low-rank updates: PEFT's `modules_to_save`.

A copy takes the module's place in the tree and remembers it, so that the base comes back bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError, UsageError
from macllm.nn.quantize import QUANTIZED, unpacked

from .layers import LoRALinear, Precision, matches, packed_as

_ATTRIBUTE = "replaced"


class Whole(NamedTuple):
    """All weights of a module by their names in it, in place of those of the base."""

    tensors: dict[str, mx.array]


@dataclass(frozen=True)
class Replaced:
    """The module of the base whose place another has; `stored` are weights as they were read."""

    base: nn.Module
    stored: Whole | None = None


def replaced(module: nn.Module) -> Replaced | None:
    """The base of a module that is trained whole."""
    return vars(module).get(_ATTRIBUTE)


def saved(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` that are trained whole, by name."""
    return {name: module for name, module in model.named_modules() if replaced(module) is not None}


def save_targets(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that patterns name, in order. Raises UsageError for a pattern that matches none."""
    modules = _savable(model)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in modules):
            raise UsageError(
                f"no module for the pattern {pattern!r} of modules_to_save",
                cause="a linear layer, an embedding, a norm or another module without modules in it can be saved",
                remedy=f"patterns such as {', '.join(sorted({name.rsplit('.', 1)[-1] for name in modules})[:12])}",
            )
    return {name: module for name, module in modules.items() if any(matches(name, one) for one in patterns)}


def _savable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules with weights and without modules in them; of an adapted layer its base, under its name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        base = module.linear if isinstance(module, LoRALinear) else module
        inside = name.endswith(".linear") and name.removesuffix(".linear") in found
        if not inside and not base.children() and any(isinstance(value, mx.array) for value in base.values()):
            found[name] = base
    return found


def whole_copy(module: nn.Module, whole: Whole | None = None) -> nn.Module:
    """A trainable, unpacked copy that remembers `module`, with given weights or its own."""
    out = copy.copy(unpacked(module))
    out._no_grad = set()
    if whole is not None:
        for name, array in whole.tensors.items():
            out[name] = array.astype(out[name].dtype)
    setattr(out, _ATTRIBUTE, Replaced(module, whole))
    return out


def whole_weights(module: nn.Module) -> Whole:
    """The weights of a module that is trained whole, as they were read if they were."""
    found = replaced(module)
    if found is not None and found.stored is not None:
        return found.stored
    return Whole({name: array for name, array in module.items() if isinstance(array, mx.array)})


def check_whole(model: nn.Module, changes: Mapping[str, Whole]) -> dict[str, nn.Module]:
    """The modules that weights replace. Raises CheckpointError for others, and for another shape."""
    modules = _savable(model)
    for name, whole in changes.items():
        if name not in modules:
            raise CheckpointError(
                f"the adapter stores {name}, which this model does not have",
                remedy="load the model that the adapter was made for",
            )
        own = {n: a.shape for n, a in whole_weights(unpacked(modules[name])).tensors.items()}
        theirs = {n: a.shape for n, a in whole.tensors.items()}
        if own != theirs:
            raise CheckpointError(
                f"the adapter stores another {name} than the model has",
                cause=f"its shapes are {_listed(theirs)}, the model's {_listed(own)}",
                remedy="load the model that the adapter was made for",
            )
    return {name: modules[name] for name in changes}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))


def without_base(module: nn.Module, precision: Precision) -> nn.Module:
    """A module that is trained whole as one of the model's own, quantized like its base."""
    out = copy.copy(module)
    base = cast(Replaced, vars(out).pop(_ATTRIBUTE)).base
    return packed_as(out, base, precision) if isinstance(base, QUANTIZED) else out
