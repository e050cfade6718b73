"""Parameters of a model that is trained: number, values, evaluation, and layers computed again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.nn import lora, quantize
from macllm.nn.recompute import checkpoint_layers

from .contract import Arrays, OptimizerState

log = logging.getLogger("macllm")

_STACKS = frozenset({"SwitchLinear", "QuantizedSwitchLinear"})  # mlx-lm's experts
_CHUNK_BYTES = 1 << 26  # new weights and optimizer state in one mx.eval


def eval_in_chunks(weights: Arrays, optimizer: OptimizerState) -> None:
    """Evaluate a few weights at a time: the memory of old weights and gradients is freed in between."""
    waiting: list[mx.array] = []
    for name, weight in weights.items():
        waiting += [weight, *(slot[name] for slot in optimizer.slots.values() if name in slot)]
        if sum(array.nbytes for array in waiting) >= _CHUNK_BYTES:
            mx.eval(waiting)
            waiting = []
    mx.eval(waiting, *optimizer.slots.values())


def are_finite(weights: Arrays) -> bool:
    """True if no weight is infinite or NaN."""
    return all(bool(mx.isfinite(weight).all()) for weight in weights.values())


def size_of(parameters: Any) -> int:
    """Number of values in a tree of arrays."""
    return sum(array.size for _, array in tree_flatten(parameters) if isinstance(array, mx.array))


def train_weights(model: nn.Module, num_layers: int, heads: Sequence[str] = ()) -> list[str]:
    """Make the weights of the last layers trainable, or all (-1), and return their names.

    `heads` are modules outside of the layers that are trained too.
    Raises UsageError for a quantized model: a step would be lost in the rounding of its weights.
    """
    if any(isinstance(module, quantize.QUANTIZED) for module in model.modules()):
        raise UsageError(
            "a quantized model cannot be fine-tuned in full",
            cause="its weights are whole numbers of a few bits, which have no gradient",
            remedy="its unquantized checkpoint as --model, or --lora",
        )
    model.unfreeze()
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    if num_layers < 0:
        return names
    last = lora.in_last_layers(names, num_layers)
    names = [name for name in names if name in last or name.rpartition(".")[0] in heads]
    model.freeze()
    modules = dict(model.named_modules())
    for module, _, leaf in (name.rpartition(".") for name in names):
        modules[module].unfreeze(recurse=False, keys=leaf)
    return names


def tell_of_experts(model: nn.Module) -> None:
    """Log that a run that adapts all layers it can leaves out experts of mlx-lm's classes."""
    if any(type(module).__name__ in _STACKS for module in model.modules()):
        log.warning("the experts of this model are not adapted, which macllm supports for its own families only")


def compute_layers_again(model: nn.Module, enabled: bool) -> bool:
    """Compute layers again for their gradients, or not; False for a model without known layers.

    Raises UsageError for such a model if `enabled`.
    """
    can = checkpoint_layers(model, enabled)
    if enabled and not can:
        raise UsageError(
            "grad_checkpoint needs a model of a supported family",
            cause=f"{type(model).__name__} has no layers that can be computed again",
            remedy="leave grad_checkpoint out",
        )
    return can


def shapes(optimizer: OptimizerState) -> set[tuple[object, ...]]:
    """Slot, name, shape and type of each array of an optimizer."""
    return {
        (slot, name, *array.shape, str(array.dtype))
        for slot, arrays in optimizer.slots.items()
        for name, array in arrays.items()
    }


def check_shapes(step: int, theirs: Arrays, ours: Arrays) -> None:
    """Raise UsageError unless the weights of a snapshot are those of the model."""
    before, now = ({(name, *array.shape) for name, array in found.items()} for found in (theirs, ours))
    if different := sorted(before ^ now, key=str):
        raise UsageError(
            f"the snapshot of step {step} does not fit the model of these settings",
            cause=f"only one of them has {different[0][0]} of shape {different[0][1:]}",
            remedy="the method, rank, keys, num_layers, modules_to_save and model of the run that was forked",
        )
