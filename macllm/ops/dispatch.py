"""Choice of an op's implementation: our kernels, MLX's operations, or the reference."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Literal, TypeVar

import mlx.core as mx

from . import cpu
from .metal import DTYPES, KernelError

Choice = Literal["reference", "stock", "native", "metal"]

log = logging.getLogger(__name__)

_choice: ContextVar[Choice] = ContextVar("choice", default="native")


@contextmanager
def using(choice: Choice) -> Iterator[None]:
    """Use nothing better than `choice` in this block: for tests and comparisons.

    "native", the default, is the best on this machine: on a CPU our kernels, on an Apple GPU those of our Metal kernels
    that tests on this machine have approved. "metal" is all Metal kernels, on any machine.
    """
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


def choice() -> Choice:
    """The best implementation that may be used here."""
    return _choice.get()


def native(*arrays: mx.array | None) -> ModuleType | None:
    """The native kernels if they support these arrays (all float32, on the CPU); else None."""
    if _choice.get() != "native" or mx.default_device() != mx.cpu:
        return None
    for array in arrays:
        if array is not None and array.dtype != mx.float32:
            return None
    return cpu.kernels() if cpu.available() else None


refused: dict[str, str] = {}
"""Ops whose Metal kernels failed in this process, with the error."""

undecided: Counter[str] = Counter()
"""Keys (`metal.approved.key`) that this process has requested without a decision, with counts."""

Result = TypeVar("Result")


def attempt(op: str, run: Callable[[], Result]) -> Result | None:
    """Results of an op's Metal kernels; None if Metal rejects one, after which the op uses its fallback."""
    try:
        return run()
    except KernelError as error:
        refused[op] = str(error)
        log.info("%s falls back to MLX: %s", op, error)
        return None


def metal(op: str, dtype: mx.Dtype, size: int) -> bool:
    """True if our Metal kernels are used for an op with this type and size (see `metal.approved`).

    Without a decision they are not, and `undecided` counts the request.
    """
    decided = _decision(op, dtype, size)
    if decided is None:
        from .metal.approved import key

        undecided[key(op, dtype, size)] += 1
    return decided is True


def metal_possible(op: str, dtype: mx.Dtype, size: int) -> bool:
    """True if `metal` is or may become true."""
    return _decision(op, dtype, size) is not False


def _decision(op: str, dtype: mx.Dtype, size: int) -> bool | None:
    if dtype not in DTYPES or _choice.get() not in ("metal", "native") or op in refused:
        return False
    if _choice.get() == "metal":
        return True
    if not mx.metal.is_available() or mx.default_device() != mx.gpu:
        return False
    from .metal import approved  # imported here: machines without Metal do not need it

    return approved.decision(op, dtype, size)
