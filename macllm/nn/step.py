"""A decoding step through a layer in two ops: what they need to know, gathered from the layer's modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn

from macllm.ops.step import (
    MOST_ROWS,
    NO_NORM,
    AttentionNumbers,
    Norm,
    Residual,
    Slots,
    Weights,
    attention_numbers,
    attention_step,
    mlp_numbers,
    mlp_step,
)

from .cache import LayerCache
from .mask import Masks
from .mlp import MLP
from .norm import LayerNorm, ResidualNorm, RMSNorm

if TYPE_CHECKING:
    from .attention import SelfAttention

_NORMS = ("pre", "branch", "sum")
_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj")
_QK_NORMS = ("q_norm", "k_norm", "q_head_norm", "k_head_norm")


class AttentionStep:
    """`norm.join(x, attention(norm.pre(x)))` for one new token a row."""

    def __init__(self, attention: SelfAttention, norm: ResidualNorm):
        s = attention.spec
        heat = s.temperature
        rest = AttentionNumbers(
            s.num_heads,
            s.scale,
            s.logit_softcap or 0.0,
            heat.floor if heat else 0.0,
            heat.scale if heat else 0.0,
            s.rope is not None and s.rope.interleaved,
            *(_numbers(attention[name]) for name in _QK_NORMS),
        )
        self._numbers = attention_numbers(_residual(norm), rest)

    def __call__(
        self, x: mx.array, attention: SelfAttention, norm: ResidualNorm, masks: Masks, cache: LayerCache
    ) -> mx.array | None:
        """(B, 1, D) -> (B, 1, D), appending to `cache`; None, and nothing done, where there is no op for it."""
        weights = _norm_weights(norm, _NORMS)
        if x.shape[0] > MOST_ROWS or masks.bias is not None or not _add_maps(weights, attention, _MAPS):
            return None
        free = cache.slot()
        if free is None:
            return None
        weights += _norm_weights(attention, _QK_NORMS)
        rows, span = x.shape[0], masks.span
        first = [slot - cache.start for slot in masks.oldest(attention.spec.mask, rows)]
        position = [span.offset - n for n in span.left_padding] if span.left_padding else [span.offset] * rows
        keys, values, at, borrowed = free
        rotation = attention.rotate.table(span) if attention.rotate is not None else (None, 1.0)
        done = attention_step(x, Slots(keys, values, at, first, position, borrowed), rotation, weights, self._numbers)
        if done is None:
            return None
        y, keys, values = done
        cache.fill(keys, values)
        return y


class MLPStep:
    """`norm.join(x, mlp(norm.pre(x)))` for one new token a row."""

    def __init__(self, mlp: MLP, norm: ResidualNorm):
        self._numbers = mlp_numbers(_residual(norm), mlp.activation)
        self._maps = ("up_proj", "down_proj", "gate_proj") if mlp.is_gated else ("up_proj", "down_proj")

    def __call__(self, x: mx.array, mlp: MLP, norm: ResidualNorm) -> mx.array | None:
        """(B, 1, D) -> (B, 1, D); None where there is no op for it."""
        weights = _norm_weights(norm, _NORMS)
        if self._numbers is None or x.shape[0] > MOST_ROWS or not _add_maps(weights, mlp, self._maps):
            return None
        if not mlp.is_gated:
            weights += (None, None)
        return mlp_step(x, weights, self._numbers)


def _residual(norm: ResidualNorm) -> Residual:
    return Residual(*(_numbers(norm[name]) for name in _NORMS))


def _numbers(norm: nn.Module) -> Norm:
    match norm:
        case RMSNorm():
            return (1.0, norm.eps, float(norm.unit_offset))
        case LayerNorm():
            return (2.0, norm.eps, 0.0)
    return NO_NORM


# Modules are dicts of what they hold, and read as such: by attribute it takes ten times as long.
def _norm_weights(parent: nn.Module, names: tuple[str, ...]) -> Weights:
    weights: Weights = []
    for name in names:
        norm = parent[name]
        weights += (norm.get("weight"), norm.get("bias"))
    return weights


def _add_maps(weights: Weights, parent: nn.Module, names: tuple[str, ...]) -> bool:
    """Append weight and bias of linear maps; False where one is no plain one."""
    for name in names:
        linear = parent[name]
        if type(linear) is not nn.Linear:
            return False
        weights += (linear["weight"], linear.get("bias"))
    return True
