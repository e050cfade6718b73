"""Layers whose gradients compute them again rather than keep their activations (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from macllm.ops.recompute import recomputed


class Bound(NamedTuple):
    """A function of arrays, and the trained weights of its modules as the first of these arrays."""

    weights: list[mx.array]
    run: Callable[..., mx.array]
    """`run(*weights, *inputs)`."""


def bind(modules: Sequence[nn.Module], run: Callable[..., mx.array]) -> Bound:
    """`run`, with the trained weights of `modules` as inputs, so that gradients reach them.

    The modules hold the given weights during a call only.
    """
    flat = [cast("list[tuple[str, mx.array]]", tree_flatten(module.trainable_parameters())) for module in modules]
    kept = [array for named in flat for _, array in named]

    def put(arrays: Sequence[mx.array]) -> None:
        rest = iter(arrays)
        for module, named in zip(modules, flat, strict=True):
            if named:
                module.update(tree_unflatten([(name, next(rest)) for name, _ in named]))

    def call(*arrays: mx.array) -> mx.array:
        put(arrays[: len(kept)])
        try:
            return run(*arrays[len(kept) :])
        finally:
            put(kept)

    return Bound(kept, call)


def recompute(modules: Sequence[nn.Module], run: Callable[..., Any], *inputs: mx.array) -> Any:
    """run(*inputs), with weights of `modules`; only inputs are kept for the gradients."""
    bound = bind(modules, run)
    return recomputed(bound.run, *bound.weights, *inputs)


def checkpoint_layers(model: nn.Module, enabled: bool) -> bool:
    """Set activation checkpointing of all layers of `model`; False if it does not support that.

    A setting of these layers alone, not of their classes.
    """
    stacks: list[Any] = [module for module in model.modules() if hasattr(module, "checkpoints_layers")]
    for stack in stacks:
        stack.checkpoints_layers = enabled
    return bool(stacks)
