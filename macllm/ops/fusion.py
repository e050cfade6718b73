"""Fusion of elementwise functions."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TypeVar

import mlx.core as mx

F = TypeVar("F", bound=Callable[..., object])


def fused(function: F) -> F:
    """`function`, compiled where MLX can, so that it reads each of its arrays only once.

    MLX needs g++ for that on a Linux CPU.
    """
    return mx.compile(function) if can_compile() else function  # type: ignore[return-value]


def can_compile() -> bool:
    """True if MLX can compile functions here."""
    return mx.default_device() != mx.cpu or sys.platform != "linux" or shutil.which("g++") is not None
