"""Products of a few rows with packed matrices, and what comes before and after, in one op where a kernel serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from . import dispatch
from .metal import launch
from .metal.quantized_matvec import qmv
from .metal.quantized_matvec.qmv import Adapter, Around, Norm
from .quantized import Packed

__all__ = ["Adapter", "Around", "Experts", "Norm", "experts", "gated_product", "product", "serving", "three_products"]


def serving(x: mx.array) -> bool:
    """Whether there may be a kernel for rows like those of x (..., D)."""
    rows = x.size // x.shape[-1]
    ops = "qmv", "qmv_gated", "qmv_three", "lora", "moe"
    return rows <= qmv.MOST_ROWS and any(dispatch.metal_possible(op, x.dtype, rows) for op in ops)


def product(x: mx.array, w: Packed, around: Around) -> mx.array | None:
    """x' W^T + bias + alpha x' A B + residual, x' the norm of x: (..., D) -> (..., F).

    None where no kernel does all of it at once. It has no gradient.
    """
    return _run("qmv" if around.adapter is None else "lora", x, _matrix(w), around)


def gated_product(x: mx.array, gate: Packed, up: Packed, activation: str, norm: Norm | None) -> mx.array | None:
    """act(x' G^T) * x' U^T, x' the norm of x: (..., D) -> (..., F); None where no kernel does it. No gradient."""
    alike = (gate.bits, gate.group_size, gate.weight.shape) == (up.bits, up.group_size, up.weight.shape)
    beside = _matrix(up)
    if not alike or beside is None or activation not in qmv.ACTIVATIONS:
        return None
    return _run("qmv_gated", x, _matrix(gate), Around(norm, beside, activation))


def three_products(
    x: mx.array, matrices: Sequence[Packed], norm: Norm | None, biases: Sequence[mx.array] | None
) -> list[mx.array] | None:
    """x' W^T + bias for each of three matrices, x' the norm of x: (..., D) -> three of (..., F).

    None where no kernel does it. No gradient.
    """
    rows = mx.contiguous(x.reshape(-1, x.shape[-1]))
    known = [m for m in map(_matrix, matrices) if m is not None and qmv.serves(rows, m)]
    alike = len({(m.bits, m.group_size) for m in known}) == 1 and len(known) == len(matrices)
    if not alike or not dispatch.metal("qmv_three", x.dtype, rows.shape[0]):
        return None
    made = dispatch.attempt("qmv_three", lambda: launch(qmv.three(rows, known, norm, biases)))
    return made and [y.reshape(*x.shape[:-1], -1) for y in made]


def _run(op: str, x: mx.array, w: qmv.Matrix | None, around: Around) -> mx.array | None:
    rows = x.reshape(-1, x.shape[-1])
    if w is None or not qmv.serves(rows, w) or not dispatch.metal(op, x.dtype, rows.shape[0]):
        return None
    y = dispatch.attempt(op, lambda: qmv.product(rows, w, around))
    return None if y is None else y.reshape(*x.shape[:-1], -1)


class Experts(NamedTuple):
    """Stacks (E, F, D), (E, F, D) and (E, D, F) of gated feed-forward layers."""

    gate: Packed
    up: Packed
    down: Packed
    activation: str


def experts(
    x: mx.array, e: Experts, chosen: mx.array, weights: mx.array, residual: mx.array | None = None
) -> mx.array | None:
    """The weighted sum of each token's experts, and `residual`: (..., D), chosen and weights (..., T) -> (..., D).

    None where no kernels do it. It has no gradient.
    """
    rows = x.reshape(-1, x.shape[-1])
    matrices = [_matrix(w) for w in (e.gate, e.up, e.down)]
    known = [m for m in matrices if m is not None and qmv.serves(rows, m)]
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


def _matrix(w: Packed) -> qmv.Matrix | None:
    if w.mode != "affine" or w.biases is None or w.bits is None or w.group_size is None:
        return None
    return qmv.Matrix(w.weight, w.scales, w.biases, w.bits, w.group_size)
