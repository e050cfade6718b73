"""Gradients that compute a function again rather than keep its results (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx


def recomputed(run: Callable[..., Any], *inputs: mx.array) -> Any:
    """run(*inputs), an array or several, of which only the inputs are kept for the gradients.

    Equal to a plain call in value, gradients and random numbers drawn: the second run draws those of the first. Arrays
    that `run` uses but does not take as inputs are constants.
    """
    drawn = random_state()

    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        # Behind the cotangents, so that the second run does not begin before its turn.
        arrays, slopes = (list(x) if isinstance(x, tuple | list) else [x] for x in (primals, cotangents))
        ordered: Any = mx.depends(arrays, slopes)
        with replaying(drawn):
            return tuple(mx.vjp(run, ordered, slopes)[1])

    function: Any = mx.custom_function(run)
    function.vjp(gradients)
    return function(*inputs)


def random_state() -> int:
    """The state of MLX's random numbers in this thread, as a seed that restores it."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return (high << 32) | low


@contextmanager
def replaying(state: int) -> Iterator[None]:
    """Draw the random numbers that follow `state` in this block; afterwards, those that would have come."""
    later = random_state()
    mx.random.seed(state)
    try:
        yield
    finally:
        mx.random.seed(later)


def after(array: mx.array, others: Sequence[mx.array]) -> mx.array:
    """`array`, to be evaluated after `others`, so that what both need in between is not in memory at once."""
    return mx.depends([array], list(others))[0] if others else array
