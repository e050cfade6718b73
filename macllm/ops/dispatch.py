"""Which implementation serves an op: our kernels, MLX's own, or the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Literal

import mlx.core as mx

from . import cpu

Choice = Literal["reference", "stock", "native"]

_choice: ContextVar[Choice] = ContextVar("choice", default="native")


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Serve ops with nothing better than `choice` in this block: for tests and comparisons."""
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def choice() -> Choice:
    """The best implementation that may serve here."""
    return _choice.get()


def native(*arrays: mx.array | None) -> ModuleType | None:
    """The native kernels if they can serve these arrays, all of them float32 on the CPU; else None."""
    if _choice.get() != "native" or mx.default_device() != mx.cpu:
        return None
    for array in arrays:
        if array is not None and array.dtype != mx.float32:
            return None
    return cpu.kernels() if cpu.available() else None
