"""Metal kernels: sources, launchers beside them, and `launch`, which runs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx

HERE = Path(__file__).parent
LANES = 32
"""Threads of a simdgroup."""
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
"""Supported types of numbers."""

Triple = tuple[int, int, int]
Input = mx.array | int | float


@dataclass(frozen=True)
class KernelCall:
    """One dispatch of a kernel: `kernel` is its file without `.metal`, `grid` counts threads.

    Inputs and outputs (shape and type) are in the order of the kernel's buffers, under the names in its source. Inputs
    are read through their strides; the last axis of an array must be contiguous.
    """

    kernel: str
    inputs: Mapping[str, Input]
    outputs: Mapping[str, tuple[tuple[int, ...], mx.Dtype]]
    grid: Triple
    threadgroup: Triple
    template: Mapping[str, int | bool | mx.Dtype] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for a grid that is not made of whole threadgroups, which Metal would truncate."""
        if any(whole % part or part < 1 for whole, part in zip(self.grid, self.threadgroup, strict=True)):
            raise ValueError(f"{self.kernel}: a grid of {self.grid} is not made of threadgroups of {self.threadgroup}")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of MLX's kernel, apart from its source."""
        return {
            "inputs": list(self.inputs.values()),
            "template": list(self.template.items()),
            "grid": self.grid,
            "threadgroup": self.threadgroup,
            "output_shapes": [shape for shape, _ in self.outputs.values()],
            "output_dtypes": [dtype for _, dtype in self.outputs.values()],
        }


@dataclass(frozen=True)
class KernelSource:
    """A kernel's source: `header` functions, and the `source` of its body."""

    header: str
    source: str


@cache
def kernel_source(kernel: str) -> KernelSource:
    """Source of `<kernel>.metal` and its includes. Lines that begin with `//:` are the body."""
    lines = _lines(_path(kernel))
    source = [line.removeprefix("//:").removeprefix(" ") for line in lines if line.startswith("//:")]
    return KernelSource("\n".join(line for line in lines if not line.startswith("//:")) + "\n", "\n".join(source))


def _path(kernel: str) -> Path:
    (path,) = HERE.rglob(f"{kernel}.metal")
    return path


def _lines(path: Path) -> list[str]:
    lines: list[str] = []
    for line in path.read_text(encoding="ascii").splitlines():
        included = re.fullmatch(r'#include "([\w./]+)"', line)
        lines += _lines(path.parent / included[1]) if included else [line]
    return lines


class KernelError(RuntimeError):
    """Metal rejects a kernel."""


def launch(call: KernelCall) -> list[mx.array]:
    """Launch a kernel; returns its outputs. Raises KernelError if Metal rejects the kernel."""
    return _executor.get()(call)


@contextmanager
def executed_by(executor: Callable[[KernelCall], list[mx.array]]) -> Iterator[None]:
    """Run kernels with `executor` instead of the GPU in this block."""
    token = _executor.set(executor)
    try:
        yield
    finally:
        _executor.reset(token)


def options(call: KernelCall) -> dict[str, Any]:
    """Arguments of `mx.fast.metal_kernel` for a call."""
    return {
        "name": call.kernel,
        "input_names": list(call.inputs),
        "output_names": list(call.outputs),
        "header": kernel_source(call.kernel).header,
        "source": kernel_source(call.kernel).source,
        "ensure_row_contiguous": False,
    }


_compiled: dict[tuple[str, ...], Callable[..., list[mx.array]]] = {}
_proven: set[tuple[object, ...]] = set()


def _on_gpu(call: KernelCall) -> list[mx.array]:
    key = (call.kernel, *call.inputs, *call.outputs)
    if key not in _compiled:
        made: Any = mx.fast.metal_kernel(**options(call))
        _compiled[key] = made
    outputs = _compiled[key](**call.arguments)
    if mx.metal.is_available():
        _prove(call, outputs)
    return outputs


def _prove(call: KernelCall, outputs: list[mx.array]) -> None:
    """Evaluate the first outputs of each kernel specialization, so that it fails before it is used."""
    form = call.kernel, call.threadgroup, *call.template.values()
    if form in _proven:
        return
    try:
        mx.eval(outputs)
    except ValueError:  # inside a function transformation, arrays cannot be evaluated
        return
    except RuntimeError as error:
        raise KernelError(f"{call.kernel}: {str(error).strip()}") from error
    _proven.add(form)


_executor: ContextVar[Callable[[KernelCall], list[mx.array]]] = ContextVar("executor", default=_on_gpu)
