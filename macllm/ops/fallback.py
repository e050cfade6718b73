"""A kernel with its fallback, which also computes its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import mlx.core as mx

Result = TypeVar("Result", mx.array, list[mx.array])


class _UnsupportedError(Exception):
    pass


def kernel_or(kernel: Callable[..., Result | None], fallback: Callable[..., Result], *args: Any) -> Result:
    """kernel(*args), or fallback(*args) if that returns None; gradients are always the fallback's.

    Arguments are arrays, NamedTuples of arguments, and constants. Only arrays of floats are differentiated.
    """

    def run(*arrays: mx.array) -> Result:
        y = kernel(*_rebuilt(args, iter(arrays)))
        if y is None:
            raise _UnsupportedError
        return y

    def gradients(primals: Any, cotangents: Any, _: Any) -> tuple[mx.array, ...]:
        def outputs(*arrays: mx.array) -> list[mx.array]:
            y = fallback(*_rebuilt(args, iter(arrays)))
            return [y] if isinstance(y, mx.array) else y

        return tuple(mx.vjp(outputs, _several(primals), _several(cotangents))[1])

    op: Any = mx.custom_function(run)
    op.vjp(gradients)
    try:
        return op(*_floats(args))
    except _UnsupportedError:
        return fallback(*args)


def _several(arrays: mx.array | Sequence[mx.array]) -> list[mx.array]:
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _floats(args: Sequence[Any]) -> Iterator[mx.array]:
    for arg in args:
        if isinstance(arg, tuple | list):
            yield from _floats(arg)
        elif isinstance(arg, mx.array) and mx.issubdtype(arg.dtype, mx.floating):
            yield arg


def _rebuilt(args: Sequence[Any], arrays: Iterator[mx.array]) -> list[Any]:
    """`args` with their arrays of floats replaced by `arrays`."""

    def one(arg: Any) -> Any:
        if isinstance(arg, list):
            return [one(each) for each in arg]
        if isinstance(arg, tuple):
            return type(arg)(*map(one, arg))  # pyright: ignore[reportUnknownVariableType]
        return next(arrays) if isinstance(arg, mx.array) and mx.issubdtype(arg.dtype, mx.floating) else arg

    return [one(arg) for arg in args]
