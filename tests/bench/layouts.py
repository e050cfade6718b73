"""Memory layouts of MLX arrays, and the primitives that are views of another array's buffer.

mlx/backend/gpu/primitives.cpp and common/slicing.cpp, common/utils.cpp: they dispatch nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from primitives import Array, Node

SPARE_BYTES = 16384  # gpu/primitives.cpp, Contiguous: most extra bytes of a buffer that is shared with a slice of it
SHAPES = {"Flatten", "Reshape", "Unflatten"}
"""Primitives that are views if numpy can make one without a copy, as MLX can."""


@dataclass(frozen=True)
class Layout:
    """Layout of an array: a numpy view that is never read, and the buffer behind it."""

    view: np.ndarray
    buffer: str
    buffer_bytes: int
    cached: bool = False  # keys or values of earlier tokens

    @classmethod
    def fresh(cls, array: Array, cached: bool = False) -> Layout:
        """The layout of an array in a new buffer."""
        size, strides = array.dtype.size, []
        for n in reversed(array.shape):
            strides.insert(0, size)
            size *= n
        one = np.empty(1, np.dtype((np.void, array.dtype.size)))
        return cls(np.lib.stride_tricks.as_strided(one, array.shape, strides), array.name, array.nbytes, cached)

    @property
    def nbytes(self) -> int:
        """Bytes of memory in the view."""
        shown = (n for n, step in zip(self.view.shape, self.view.strides, strict=True) if step)
        return math.prod(shown) * self.view.itemsize

    @property
    def in_order(self) -> bool:
        """MLX's flags().row_contiguous."""
        return bool(self.view.flags.c_contiguous)

    @property
    def in_rows(self) -> bool:
        """True if the last two axes are contiguous (quantized.cpp, ensure_row_contiguous_matrix)."""
        return bool(self.view[(0,) * (self.view.ndim - 2)].flags.c_contiguous)

    @property
    def whole(self) -> bool:
        """MLX's flags().contiguous: no gaps, the axes in any order."""
        order = np.argsort([-step for step in self.view.strides], kind="stable")
        return bool(self.view.transpose(order).flags.c_contiguous)


View = Callable[[Node, Layout], "np.ndarray | None"]


def _reshaped(node: Node, source: Layout) -> np.ndarray | None:
    try:
        return source.view.reshape(node.outputs[0].shape, copy=False)
    except ValueError:
        return None


def _in_order(node: Node, source: Layout) -> np.ndarray | None:
    kept = source.buffer_bytes <= node.outputs[0].nbytes + SPARE_BYTES
    return source.view if kept and source.in_order else None


def _as_type(node: Node, source: Layout) -> np.ndarray | None:
    return source.view if node.inputs[0].dtype.size == node.outputs[0].dtype.size else None


def _slice(node: Node, source: Layout) -> np.ndarray:
    return source.view[tuple(slice(*ends) for ends in zip(*node.arguments, strict=True))]


_VIEWS: dict[str, View] = {
    "Broadcast": lambda node, source: np.broadcast_to(source.view, node.outputs[0].shape),
    "BroadcastAxes": lambda node, source: np.broadcast_to(source.view, node.outputs[0].shape),
    "Transpose": lambda node, source: source.view.transpose(node.arguments[0]),
    "ExpandDims": lambda node, source: np.expand_dims(source.view, tuple(node.arguments[0])),
    "Squeeze": lambda node, source: np.squeeze(source.view, tuple(node.arguments[0])),
    "Slice": _slice,
    "Contiguous": _in_order,
    "View": _as_type,
    **dict.fromkeys(SHAPES, _reshaped),
}
_SAME = {"Copy", "CustomTransforms", "Depends", "StopGradient"}


def views_of(node: Node, ins: list[Layout]) -> list[Layout] | None:
    """Layouts of outputs that share their input's buffer; None if the primitive computes."""
    if node.name in _SAME:
        return ins[: len(node.outputs)]
    if node.name == "Split":
        return [replace(ins[0], view=part) for part in np.split(ins[0].view, node.arguments[0], node.arguments[1])]
    if node.name not in _VIEWS:
        return None
    view = _VIEWS[node.name](node, ins[0])
    return None if view is None else [replace(ins[0], view=view)]
