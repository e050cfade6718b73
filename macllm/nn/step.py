"""A decoding step through a layer in two ops: what they need to know, gathered from the layer's modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from macllm.ops import step
from macllm.ops.step import ACTIVATIONS, NO_NORM, Attention, Norm, Residual, Slots

from .cache import LayerCache
from .linear import Linear
from .mask import Masks
from .mlp import MLP
from .norm import LayerNorm, ResidualNorm, RMSNorm

if TYPE_CHECKING:
    from .attention import SelfAttention

_LEAVES = ("weight", "bias")
_NORMS = ("pre", "branch", "sum")
_ATTENTION_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
_ATTENTION_NORMS = ("q_norm", "k_norm", "q_head_norm", "k_head_norm")
_MLP_MAPS = ("up_proj", "down_proj", "gate_proj")

Leaf = tuple[str, str]


class AttentionStep:
    """`norm.join(x, attention(norm.pre(x)))` for one new token a row."""

    def __init__(self, attention: SelfAttention, norm: ResidualNorm):
        s = attention.spec
        heat = s.temperature
        numbers = Attention(
            s.num_heads,
            s.scale,
            s.logit_softcap or 0.0,
            heat.floor if heat else 0.0,
            heat.scale if heat else 0.0,
            s.rope is not None and s.rope.interleaved,
            *(_numbers(attention[name]) for name in _ATTENTION_NORMS),
        )
        self._norm_leaves, of_norm = _leaves(norm, _NORMS)
        self._own_leaves, own = _leaves(attention, (*_ATTENTION_MAPS, *_ATTENTION_NORMS))
        self._op = step.AttentionStep(_residual(norm), numbers, of_norm + own)

    def __call__(
        self, x: mx.array, attention: SelfAttention, norm: ResidualNorm, masks: Masks, cache: LayerCache
    ) -> mx.array | None:
        """(B, 1, D) -> (B, 1, D), appending to `cache`; None, and nothing done, where there is no op for it."""
        free = cache.slot() if masks.bias is None and _plain(attention, _ATTENTION_MAPS) else None
        if free is None:
            return None
        weights = [norm[child][leaf] for child, leaf in self._norm_leaves]
        weights += [attention[child][leaf] for child, leaf in self._own_leaves]
        keys, values, at, borrowed = free
        oldest, position = masks.rows(attention.spec.mask, x.shape[0])
        first = [slot - cache.start for slot in oldest] if cache.start else oldest
        rotate = attention.rotate
        wavelengths, magnitude = (None, 1.0) if rotate is None else rotate.table(masks.span)
        done = self._op(x, Slots(keys, values, at, first, position, borrowed), wavelengths, magnitude, weights)
        if done is None:
            return None
        y, keys, values = done
        cache.fill(keys, values)
        return y


class MLPStep:
    """`norm.join(x, mlp(norm.pre(x)))` for one new token a row."""

    def __init__(self, mlp: MLP, norm: ResidualNorm):
        self._maps = _MLP_MAPS if mlp.is_gated else _MLP_MAPS[:2]
        self._norm_leaves, of_norm = _leaves(norm, _NORMS)
        self._own_leaves, own = _leaves(mlp, self._maps)
        known = ACTIVATIONS.get(mlp.activation)
        self._op = None if known is None else step.MLPStep(_residual(norm), [known], of_norm + own)

    def __call__(self, x: mx.array, mlp: nn.Module, norm: ResidualNorm) -> mx.array | None:
        """(B, 1, D) -> (B, 1, D); None where there is no op for it."""
        if self._op is None or not _plain(mlp, self._maps):
            return None
        weights = [norm[child][leaf] for child, leaf in self._norm_leaves]
        weights += [mlp[child][leaf] for child, leaf in self._own_leaves]
        return self._op(x, weights)


def _residual(norm: ResidualNorm) -> Residual:
    return Residual(*(_numbers(norm[name]) for name in _NORMS))


def _numbers(norm: nn.Module) -> Norm:
    match norm:
        case RMSNorm():
            return (1.0, norm.eps, float(norm.unit_offset))
        case LayerNorm():
            return (2.0, norm.eps, 0.0)
    return NO_NORM


def _leaves(parent: nn.Module, names: Iterable[str]) -> tuple[list[Leaf], list[bool]]:
    """The weights and biases that these children have, and whether they have each that they could have."""
    every = [(name, leaf) for name in names for leaf in _LEAVES]
    present = [leaf in parent[name] for name, leaf in every]
    return [leaf for leaf, has in zip(every, present, strict=True) if has], present


def _plain(parent: nn.Module, maps: Iterable[str]) -> bool:
    """Whether these linear maps are just that: not adapted, not quantized."""
    # Modules are dicts of what they hold; by attribute it takes five times as long.
    return all(type(parent[name]) is Linear for name in maps)
