"""Linear layers of a few rows by our Metal kernels, fused with their norm and residual.

Every function returns None if no kernel supports its inputs; `linear` and `experts` then fall back to MLX's operations.
The kernels have no gradients: `fallback.kernel_or` differentiates the fallback instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import dispatch
from .metal import launch
from .metal.quantized_matvec import qmv
from .metal.quantized_matvec.qmv import Adapter, Epilogue, Matrix, Norm
from .norm import normalize
from .weights import AdaptedWeight, DenseWeight, ExpertWeights, NormWeight, PackedWeight, RMSNormWeight, Weight

_OPS = ("qmv", "qmv_gated", "qmv_three", "lora", "moe")


def supports(x: mx.array) -> bool:
    """True if a kernel may exist for rows like those of x (..., D)."""
    rows = x.size // x.shape[-1]
    return rows <= qmv.MOST_ROWS and any(dispatch.metal_possible(op, x.dtype, rows) for op in _OPS)


def linear(x: mx.array, w: Weight, norm: NormWeight, residual: mx.array | None) -> mx.array | None:
    """residual + norm(x) W^T + b: (..., D) -> (..., F)."""
    adapter, base = None, w
    if isinstance(w, AdaptedWeight):
        if w.dropout or w.gain is not None:
            return None
        adapter, base = Adapter(w.a, w.b.T, w.scale), w.base
    x, before = _split(x, norm)
    added = None if residual is None else residual.reshape(-1, residual.shape[-1])
    epilogue = Epilogue(before, bias=_bias(base), residual=added, adapter=adapter)
    return _run("qmv" if adapter is None else "lora", x, _matrix(base), epilogue)


def gated_linear(x: mx.array, gate: Weight, up: Weight, activation: str, norm: NormWeight) -> mx.array | None:
    """act(x' G^T) * x' U^T with x' = norm(x): (..., D) -> (..., F)."""
    first, second = _matrix(gate), _matrix(up)
    if first is None or second is None or _bias(gate) is not None or _bias(up) is not None:
        return None
    alike = (first.bits, first.group_size, first.words.shape) == (second.bits, second.group_size, second.words.shape)
    if not alike or activation not in qmv.ACTIVATIONS:
        return None
    x, before = _split(x, norm)
    return _run("qmv_gated", x, first, Epilogue(before, second, activation))


def linears(x: mx.array, weights: Sequence[Weight], norm: NormWeight) -> list[mx.array] | None:
    """norm(x) W^T + b for each of three weights: (..., D) -> three of (..., F)."""
    x, before = _split(x, norm)
    rows = mx.contiguous(x.reshape(-1, x.shape[-1]))
    known = [m for m in map(_matrix, weights) if m is not None and qmv.supports(rows, m)]
    biases = [bias for bias in map(_bias, weights) if bias is not None]
    alike = len({(m.bits, m.group_size) for m in known}) == 1 and len(known) == len(weights) == 3
    if not alike or len(biases) not in (0, 3) or not dispatch.metal("qmv_three", x.dtype, rows.shape[0]):
        return None
    made = dispatch.attempt("qmv_three", lambda: launch(qmv.three(rows, known, before, biases or None)))
    return made and [y.reshape(*x.shape[:-1], -1) for y in made]


def experts(
    x: mx.array, e: ExpertWeights, chosen: mx.array, weights: mx.array, residual: mx.array | None
) -> mx.array | None:
    """residual + weighted sum of each token's experts: (..., D), chosen and weights (..., T) -> (..., D)."""
    rows = x.reshape(-1, x.shape[-1])
    known = [m for m in map(_matrix, (e.gate, e.up, e.down)) if m is not None and qmv.supports(rows, m)]
    if len(known) < 3 or e.activation not in qmv.ACTIVATIONS or not dispatch.metal("moe", x.dtype, rows.shape[0]):
        return None
    gate, up, down = known
    picked, shares = (array.reshape(rows.shape[0], -1) for array in (chosen, weights))
    added = None if residual is None else residual.reshape(rows.shape)

    def run() -> mx.array:
        hidden = launch(qmv.gate_up(rows, gate, up, picked, e.activation))[0]
        return launch(qmv.down_combine(hidden, down, picked, shares, added))[0]

    y = dispatch.attempt("moe", run)
    return None if y is None else y.reshape(x.shape)


def _run(op: str, x: mx.array, w: Matrix | None, epilogue: Epilogue) -> mx.array | None:
    rows = x.reshape(-1, x.shape[-1])
    if w is None or not qmv.supports(rows, w) or not dispatch.metal(op, x.dtype, rows.shape[0]):
        return None
    y = dispatch.attempt(op, lambda: qmv.product(rows, w, epilogue))
    return None if y is None else y.reshape(*x.shape[:-1], -1)


def _split(x: mx.array, norm: NormWeight) -> tuple[mx.array, Norm | None]:
    """The input of a kernel, and the norm that the kernel computes; other norms are computed here."""
    if isinstance(norm, RMSNormWeight) and norm.weight is not None:
        return x, Norm(norm.weight, norm.eps, norm.shift)
    return normalize(x, norm), None


def _matrix(w: Weight) -> Matrix | None:
    if not isinstance(w, PackedWeight) or w.mode != "affine":
        return None
    if w.biases is None or w.bits is None or w.group_size is None:
        return None
    return Matrix(w.words, w.scales, w.biases, w.bits, w.group_size)


def _bias(w: Weight) -> mx.array | None:
    return w.bias if isinstance(w, DenseWeight | PackedWeight) else None
