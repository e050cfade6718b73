"""A kernel test case: inputs, kernel, reference, and MLX's own operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from macllm.ops.metal.approved import bucket, key

Arrays = Mapping[str, mx.array]
Run = Callable[[Arrays], list[mx.array]]
Chain = Callable[[Arrays, list[mx.array]], Arrays]
Compared = Callable[[Arrays, list[mx.array]], list[mx.array]]

TOLERANCE = {mx.float32: 2.0**-16, mx.float16: 2.0**-9, mx.bfloat16: 2.0**-6}
"""Allowed error of results, relative to the largest number."""


@dataclass(frozen=True)
class Case:
    """A kernel test case: `make_inputs`, `kernel`, its float32 `reference`, and `stock`, MLX's operations.

    `chain` makes the next dispatch's inputs from results, so that dispatches depend on one another as in a model.
    Decisions depend on `size`; `timed` cases have the shapes of real models. `compared` selects or transforms the
    results to compare; `unread_bytes` counts the input bytes that the kernel need not read.
    """

    op: str
    label: str
    dtype: mx.Dtype
    size: int
    make_inputs: Callable[[int], Arrays]
    kernel: Run
    reference: Run
    stock: Run
    chain: Chain
    timed: bool = False
    compared: Compared = lambda inputs, results: results
    unread_bytes: Callable[[Arrays], int] = lambda inputs: 0

    @property
    def key(self) -> str:
        """Key of the decision on this case (`approved.key`)."""
        return key(self.op, self.dtype, self.size)

    @property
    def bucket(self) -> str:
        """The sizes for which the decision on this case holds."""
        return bucket(self.size)

    def error(self) -> float:
        """Largest error of the kernel relative to the tolerance; inf for results that are not numbers."""
        return self.error_of(self.kernel)

    def error_of(self, run: Run) -> float:
        """Largest error of `run` relative to the tolerance."""
        inputs = self.make_inputs(0)
        got = self.compared(inputs, run(inputs))
        with mx.stream(mx.cpu):  # a GPU may multiply float32 in fewer bits
            want = self.reference(inputs)
        mx.eval(got, want)
        return max(_error(a, b, TOLERANCE[self.dtype]) for a, b in zip(got, want, strict=True))

    def traffic_bytes(self) -> int:
        """Least bytes to read and write: the inputs and all results, once."""
        inputs = self.make_inputs(0)
        return sum(array.nbytes for array in [*inputs.values(), *self.kernel(inputs)]) - self.unread_bytes(inputs)


def normal(*shape: int, dtype: mx.Dtype, seed: int) -> mx.array:
    """Normally distributed numbers from a seed."""
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def group_size(head_dim: int) -> int:
    """Group size in which a cache packs heads."""
    return 64 if head_dim % 64 == 0 else 32


def widened(inputs: Arrays) -> dict[str, mx.array]:
    """Floats in float32; integers unchanged."""
    return {name: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x for name, x in inputs.items()}


def _error(got: mx.array, want: mx.array, tolerance: float) -> float:
    if got.shape != want.shape:
        return float("inf")
    wide = want.astype(mx.float32)
    bound = tolerance * mx.maximum(1.0, mx.abs(wide).max())
    error = mx.abs(got.astype(mx.float32) - wide).max() / bound
    return float("inf") if mx.isnan(error).item() else float(error)
