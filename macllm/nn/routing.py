"""Router logits of the mixtures of experts in a call, for losses of their balance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import mlx.core as mx


class Routed(NamedTuple):
    """The router's logits of one layer, (B, L, E), and the number of experts for each token."""

    logits: mx.array
    top_k: int


_collected: ContextVar[list[Routed] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[list[Routed]]:
    """Collect the router logits of the layers that are called in this block, in their order."""
    found: list[Routed] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def is_collecting() -> bool:
    """True inside of `collecting`."""
    return _collected.get() is not None


def record(logits: mx.array, top_k: int) -> None:
    """Add a layer's logits to those that are collected, if any are."""
    if (found := _collected.get()) is not None:
        found.append(Routed(logits, top_k))
