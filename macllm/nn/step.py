"""A decoding step: what its op needs to know, gathered from the modules of the branches it runs through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from macllm.ops import step
from macllm.ops.step import ACTIVATIONS, NO_NORM, NOT_PACKED, Attention, Branch, Norm, Packing, Residual, Slots

from .cache import LayerCache
from .linear import Linear
from .mask import Masks
from .mlp import MLP
from .norm import LayerNorm, ResidualNorm, RMSNorm
from .quantize import QuantizedLinear

if TYPE_CHECKING:
    from .attention import SelfAttention

_NORMS = ("pre", "branch", "sum")
_ATTENTION_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
_ATTENTION_NORMS = ("q_norm", "k_norm", "q_head_norm", "k_head_norm")
_MLP_MAPS = ("up_proj", "down_proj", "gate_proj")


class Part(NamedTuple):
    """A residual branch: how the stream goes through it in ordinary ops, and as part of a step.

    `branch` gives None where there is no op for it, and does nothing but make room then. What it attends over is in
    `cache`.
    """

    run: Callable[[mx.array], mx.array]
    branch: Callable[[ModuleType], Branch | None] | None = None
    cache: LayerCache | None = None


def through(parts: Iterable[Part], x: mx.array) -> mx.array:
    """(B, L, D) -> (B, L, D) after all parts, with as many neighbours in one op as can be."""
    kernels = step.serving(x)
    ready: list[tuple[Part, Branch]] = []
    for part in parts:
        branch = None if kernels is None or part.branch is None else part.branch(kernels)
        if branch is None:
            x = part.run(_through_steps(ready, x))
            ready.clear()
        else:
            ready.append((part, branch))
    return _through_steps(ready, x)


def _through_steps(ready: Sequence[tuple[Part, Branch]], x: mx.array) -> mx.array:
    done = step.steps(x, [branch for _, branch in ready]) if ready else None
    if done is None:
        for part, _ in ready:
            x = part.run(x)
        return x
    for part, branch in ready:
        if part.cache is not None and branch.slots is not None:
            part.cache.fill(done)
    return done


class AttentionStep:
    """`norm.join(x, attention(norm.pre(x)))` for one new token a row."""

    def __init__(self, attention: SelfAttention, norm: ResidualNorm):
        s, heat = attention.spec, attention.spec.temperature
        numbers = Attention(
            s.num_heads,
            s.scale,
            s.logit_softcap or 0.0,
            heat.floor if heat else 0.0,
            heat.scale if heat else 0.0,
            s.rope is not None and s.rope.interleaved,
            *(_numbers(attention[name]) for name in _ATTENTION_NORMS),
        )
        self._planned = _Planned(numbers, _ATTENTION_MAPS, _ATTENTION_NORMS)

    def branch(
        self, kernels: ModuleType, attention: SelfAttention, norm: ResidualNorm, masks: Masks, cache: LayerCache | None
    ) -> Branch | None:
        """For the next token of `cache`; None where there is no op for it."""
        if cache is None or masks.bias is not None or not self._planned.serves(kernels, attention, norm):
            return None
        free = cache.slot()
        if free is None:
            return None
        parts, at, after = free
        oldest, position = masks.rows(attention.spec.mask, parts[0].shape[0])
        first = [slot - cache.start for slot in oldest] if cache.start else oldest
        rotate = attention.rotate
        wavelengths, magnitude = (None, 1.0) if rotate is None else rotate.table(masks.span)
        packing = cache.codec.packing(attention.spec.head_dim)
        slots = Slots(parts, at, first, position, after, wavelengths, magnitude, *packing)
        return Branch(self._planned.plan, self._planned.weights(), slots)


class MLPStep:
    """`norm.join(x, mlp(norm.pre(x)))` for one new token a row."""

    def __init__(self, mlp: MLP):
        known = ACTIVATIONS.get(mlp.activation)
        maps = _MLP_MAPS if mlp.is_gated else _MLP_MAPS[:2]
        self._planned = None if known is None else _Planned(step.MLP(known, mlp.is_gated), maps, ())

    def branch(self, kernels: ModuleType, mlp: nn.Module, norm: ResidualNorm) -> Branch | None:
        """None where there is no op for it."""
        if self._planned is None or not self._planned.serves(kernels, mlp, norm):
            return None
        return Branch(self._planned.plan, self._planned.weights())


class _Planned:
    """A branch's plan, made anew whenever another module has taken the place of one of its linear maps."""

    def __init__(self, numbers: Attention | step.MLP, maps: Sequence[str], norms: Sequence[str]):
        self._numbers, self._map_names, self._norm_names = numbers, maps, norms
        self._maps: list[nn.Module] = []
        self._leaves: list[tuple[nn.Module, str]] = []
        self.plan: Any = None

    def __deepcopy__(self, memo: object) -> _Planned:
        return _Planned(self._numbers, self._map_names, self._norm_names)

    def serves(self, kernels: ModuleType, parent: nn.Module, norm: ResidualNorm) -> bool:
        """Whether there is an op for the modules as they are."""
        # Modules are dicts of what they hold; by attribute it takes five times as long.
        maps = [parent[name] for name in self._map_names]
        if not self._maps or any(now is not before for now, before in zip(maps, self._maps, strict=True)):
            self._maps = maps
            self._make(kernels, parent, norm)
        return self.plan is not None

    def weights(self) -> list[mx.array]:
        """The weights that there are."""
        return [module[leaf] for module, leaf in self._leaves]

    def _make(self, kernels: ModuleType, parent: nn.Module, norm: ResidualNorm) -> None:
        packings = [_packing(module) for module in self._maps]
        known = [packing for packing in packings if packing is not None]
        if len(known) < len(packings):
            self.plan = None
            return
        every = [
            *product([norm[name] for name in _NORMS], ("weight", "bias")),
            *product(self._maps, ("weight", "scales", "biases", "bias")),
            *product([parent[name] for name in self._norm_names], ("weight", "bias")),
        ]
        present = [leaf in module for module, leaf in every]
        self._leaves = [leaf for leaf, has in zip(every, present, strict=True) if has]
        norms = Residual(*(_numbers(norm[name]) for name in _NORMS))
        self.plan = step.plan(kernels, norms, self._numbers, known, present)


def _numbers(norm: nn.Module) -> Norm:
    match norm:
        case RMSNorm():
            return (1.0, norm.eps, float(norm.unit_offset))
        case LayerNorm():
            return (2.0, norm.eps, 0.0)
    return NO_NORM


def _packing(linear: nn.Module) -> Packing | None:
    """None for what is no plain linear map: adapted, or packed in a way that the op does not know."""
    if type(linear) is Linear:
        return NOT_PACKED
    if type(linear) is QuantizedLinear and linear.mode == "affine":
        return float(linear.bits), float(linear.group_size)
    return None
