"""Choice of the implementation that serves an op: our kernels, MLX's own, or the reference."""

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
    """Serve ops with nothing better than `choice` in this block: for tests and comparisons.

    "native", what serves otherwise, is the best that this machine has: on a CPU our kernels, on an Apple GPU those of
    our Metal kernels that a trial on this machine has approved. "metal" is all Metal kernels, whatever the machine.
    """
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


refused: dict[str, str] = {}
"""Ops whose Metal kernels failed in this process, and how."""

undecided: Counter[str] = Counter()
"""Decisions (`metal.approved.key`) that this process has asked for in vain, and how often."""

Result = TypeVar("Result")


def attempt(op: str, run: Callable[[], Result]) -> Result | None:
    """Results of an op's Metal kernels; None if Metal does not take them, after which others serve the op."""
    try:
        return run()
    except KernelError as error:
        refused[op] = str(error)
        log.info("%s is left to MLX: %s", op, error)
        return None


def metal(op: str, dtype: mx.Dtype, size: int) -> bool:
    """Our Metal kernels serve an op on numbers of this type; `metal.approved` says which sizes count.

    Where that is not decided they do not, and `undecided` counts the question.
    """
    decided = _decision(op, dtype, size)
    if decided is None:
        from .metal.approved import key

        undecided[key(op, dtype, size)] += 1
    return decided is True


def metal_possible(op: str, dtype: mx.Dtype, size: int) -> bool:
    """`metal` may be true, now or once that is decided."""
    return _decision(op, dtype, size) is not False


def _decision(op: str, dtype: mx.Dtype, size: int) -> bool | None:
    if dtype not in DTYPES or _choice.get() not in ("metal", "native") or op in refused:
        return False
    if _choice.get() == "metal":
        return True
    if not mx.metal.is_available() or mx.default_device() != mx.gpu:
        return False
    from .metal import approved  # what it reads, other machines need not

    return approved.decision(op, dtype, size)
