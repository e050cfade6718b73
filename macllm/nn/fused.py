"""Residual branches of a few new tokens by products that take norms, gates and residuals along, where there are such.

Every function gives None where the ordinary ops should do it. Nothing here has a gradient.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from macllm.ops import product as ops
from macllm.ops.experts import route
from macllm.ops.gate import gated
from macllm.ops.product import Adapter, Around, Experts, Norm
from macllm.ops.quantized import Packed

from .lora import LoRALinear
from .mlp import MLP
from .moe import MoE, QuantizedExpertLinear
from .norm import ResidualNorm, RMSNorm
from .quantize import QuantizedLinear

if TYPE_CHECKING:
    from .attention import SelfAttention
    from .cache import LayerCache
    from .mask import Masks


class Source:
    """What a branch reads, (B, L, D), and its norm, which products take along if they can."""

    def __init__(self, x: mx.array, norm: nn.Module | None = None):
        self.x, self._norm = x, norm

    @cached_property
    def normed(self) -> mx.array:
        """As it is after the norm, made once."""
        return self.x if self._norm is None else self._norm(self.x)

    @cached_property
    def parts(self) -> tuple[mx.array, Norm | None]:
        """What a product reads, and the norm that is left to it."""
        norm = self._norm
        if isinstance(norm, RMSNorm) and "weight" in norm:
            return self.x, Norm(norm.weight, norm.eps, float(norm.unit_offset))
        return self.normed, None


def attention(
    layer: SelfAttention, norm: ResidualNorm, x: mx.array, masks: Masks, cache: LayerCache | None
) -> mx.array | None:
    """`norm.join(x, layer(norm.pre(x)))` for a few tokens of a cache: (B, L, D) -> (B, L, D)."""
    if cache is None or not ops.serving(x):
        return None
    source = Source(x, norm.pre)
    linears = [layer[name] for name in ("q_proj", "k_proj", "v_proj")]
    q, k, v = _project_three(source, linears) or [_project(source, linear) for linear in linears]
    return _join(norm, x, Source(layer.mix((q, k, v), masks, cache)), layer["o_proj"])


def feed_forward(layer: nn.Module, norm: ResidualNorm, x: mx.array) -> mx.array | None:
    """`norm.join(x, layer(norm.pre(x)))` for a few tokens: (B, L, D) -> (B, L, D)."""
    if not ops.serving(x):
        return None
    source = Source(x, norm.pre)
    if type(layer) is MLP and layer.is_gated:
        return _join(norm, x, Source(_gated(source, layer)), layer["down_proj"])
    if type(layer) is MoE and layer.spec.weigh == "output":
        return _mixture(source, layer, norm)
    return None


def _mixture(source: Source, layer: MoE, norm: ResidualNorm) -> mx.array | None:
    stacks: list[nn.Module] = [layer.experts[name] for name in ("gate_proj", "up_proj", "down_proj")]
    if any(type(stack) is not QuantizedExpertLinear for stack in stacks):
        return None
    gate, up, down = (_packed(stack) for stack in stacks)
    residual = source.x if _only_adds(norm) else None
    if "shared" in layer:
        shared = layer.shared
        residual = _project(Source(_gated(source, shared)), shared.down_proj, residual)
    s, x = layer.spec, source.normed
    chosen, weights = route(layer.router(x), s.top_k, s.router, renormalize=s.renormalize)
    y = ops.experts(x, Experts(gate, up, down, layer.experts.activation), chosen, weights, residual)
    return y if y is None or _only_adds(norm) else norm.join(source.x, y)


def _gated(source: Source, layer: MLP) -> mx.array:
    gate, up = layer["gate_proj"], layer["up_proj"]
    if type(gate) is type(up) is QuantizedLinear and "bias" not in gate and "bias" not in up:
        x, norm = source.parts
        y = ops.gated_product(x, _packed(gate), _packed(up), layer.activation, norm)
        if y is not None:
            return y
    return gated(_project(source, gate), _project(source, up), layer.activation)


def _join(norm: ResidualNorm, x: mx.array, source: Source, linear: nn.Module) -> mx.array:
    if _only_adds(norm):
        return _project(source, linear, x)
    return norm.join(x, _project(source, linear))


def _only_adds(norm: ResidualNorm) -> bool:
    return isinstance(norm.branch, nn.Identity) and isinstance(norm.sum, nn.Identity)


def _project_three(source: Source, linears: list[nn.Module]) -> list[mx.array] | None:
    """Each of the three of norm(x): (B, L, D) -> (B, L, F)."""
    biased = ["bias" in linear for linear in linears]
    if any(type(linear) is not QuantizedLinear for linear in linears) or any(biased) != all(biased):
        return None
    x, norm = source.parts
    biases = [linear["bias"] for linear in linears] if all(biased) else None
    return ops.three_products(x, [_packed(linear) for linear in linears], norm, biases)


def _project(source: Source, linear: nn.Module, residual: mx.array | None = None) -> mx.array:
    """residual + linear(norm(x)): (B, L, D) -> (B, L, F)."""
    adapter, inner = None, linear
    if type(linear) is LoRALinear and not (linear.training and linear.rate):
        adapter, inner = Adapter(linear.lora_a, linear.lora_b.T, linear.scale), linear.linear
    if type(inner) is QuantizedLinear:
        x, norm = source.parts
        y = ops.product(x, _packed(inner), Around(norm, bias=inner.get("bias"), residual=residual, adapter=adapter))
        if y is not None:
            return y
    y = linear(source.normed)
    return y if residual is None else residual + y


def _packed(module: Any) -> Packed:
    return Packed(module.weight, module.scales, module.get("biases"), module.group_size, module.bits, module.mode)
