"""Redirection of MLX's and macllm's Metal kernels to the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from macllm.ops.metal import KernelCall, executed_by, options

from .run import Result, RunOptions, run_orders, run_text
from .text import captured


@dataclass
class Log:
    """The dispatches in order: the kernel's name and its result."""

    dispatches: list[tuple[str, Result]] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Each kernel's faults, under its name."""
        return [f"{name}: {fault}" for name, result in self.dispatches for fault in result.faults]


@contextmanager
def simulated(how: RunOptions | None = None) -> Iterator[Log]:
    """Run `mx.fast.metal_kernel` and macllm's kernels in the simulator, in all orders or with `how`."""
    log, made_by_mlx = Log(), mx.fast.metal_kernel

    def run(name: str, kernel: Callable[..., Any], arguments: dict[str, Any]) -> list[mx.array]:
        text = captured(kernel, arguments)
        result = run_text(text, arguments, how) if how else run_orders(text, arguments)
        log.dispatches.append((name, result))
        dtypes, shapes = arguments["output_dtypes"], arguments["output_shapes"]
        outputs = result.outputs or [np.zeros(shape, np.uint8) for shape in shapes]
        return [as_array(out, dtype) for out, dtype in zip(outputs, dtypes, strict=True)]

    def make(*given: Any, **options: Any) -> Callable[..., list[mx.array]]:
        options |= dict(zip(("name", "input_names", "output_names", "source", "header"), given, strict=False))
        kernel = made_by_mlx(**options)
        contiguous = options.get("ensure_row_contiguous", True)

        def call(**arguments: Any) -> list[mx.array]:
            given = arguments["inputs"]
            if contiguous:
                given = [mx.contiguous(one) if isinstance(one, mx.array) else one for one in given]
            return run(options["name"], kernel, {**arguments, "inputs": given})

        return call

    def execute(call: KernelCall) -> list[mx.array]:
        return run(call.kernel, made_by_mlx(**options(call)), call.arguments)

    with patch.object(mx.fast, "metal_kernel", make), executed_by(execute):
        yield log


def as_array(values: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """An output of the simulator as MLX's array."""
    return mx.array(values).view(dtype) if dtype == mx.bfloat16 else mx.array(values).astype(dtype)
