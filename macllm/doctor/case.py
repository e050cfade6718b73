"""A kernel test case: inputs, kernel, reference, and MLX's own operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.metal.approved import bucket, key

Arrays = Mapping[str, mx.array]
Run = Callable[[Arrays], list[mx.array]]
Next = Callable[[Arrays, list[mx.array]], Arrays]
Seen = Callable[[Arrays, list[mx.array]], list[mx.array]]

ROUNDING = {mx.float32: 2.0**-16, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}
"""Allowed distance of results, relative to the largest number."""


@dataclass(frozen=True)
class Case:
    """A kernel test case: `given` makes inputs, `ours` runs the kernel, `right` the float32 reference.

    `stock` is what serves where the kernel does not. `then` is the work that comes after, made of results, so that one
    waits for the other as in a model. `size` is what a decision depends on, `timed` cases have the shapes of real
    models. `seen` is what of the results is compared, where that is not all of them as they are; `unread_bytes` is what
    of the given need not be read.
    """

    op: str
    label: str
    dtype: mx.Dtype
    size: int
    given: Callable[[int], Arrays]
    ours: Run
    right: Run
    stock: Run
    then: Next
    timed: bool = False
    seen: Seen = lambda given, results: results
    unread_bytes: Callable[[Arrays], int] = lambda given: 0

    @property
    def key(self) -> str:
        """Key of the decision on this case (`approved.key`)."""
        return key(self.op, self.dtype, self.size)

    @property
    def bucket(self) -> str:
        """The sizes for which the decision on this case holds."""
        return bucket(self.size)

    def apart(self) -> float:
        """Largest error of the kernel relative to the tolerance; inf for results that are not numbers."""
        return self.difference(self.ours)

    def difference(self, run: Run) -> float:
        """The largest difference between `run` and the definition, of what is allowed."""
        given = self.given(0)
        ours = self.seen(given, run(given))
        with mx.stream(mx.cpu):  # a GPU may multiply float32 in fewer bits
            right = self.right(given)
        mx.eval(ours, right)
        return max(_apart(a, b, ROUNDING[self.dtype]) for a, b in zip(ours, right, strict=True))

    def traffic_bytes(self) -> int:
        """Bytes that must be read and written at least: what is given, and all results, once."""
        given = self.given(0)
        return sum(array.nbytes for array in [*given.values(), *self.ours(given)]) - self.unread_bytes(given)


def normal(*shape: int, dtype: mx.Dtype, seed: int) -> mx.array:
    """Random numbers, the same every time."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def group_size(head_dim: int) -> int:
    """Numbers of a head that are packed together, as a cache packs them."""
    return 64 if head_dim % 64 == 0 else 32


def widened(given: Arrays) -> dict[str, mx.array]:
    """Numbers in float32; integers as they are."""
    return {name: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x for name, x in given.items()}


def _apart(ours: mx.array, right: mx.array, rounding: float) -> float:
    if ours.shape != right.shape:
        return float("inf")
    wide = right.astype(mx.float32)
    bound = rounding * mx.maximum(1.0, mx.abs(wide).max())
    difference = mx.abs(ours.astype(mx.float32) - wide).max() / bound
    return float("inf") if mx.isnan(difference).item() else float(difference)
