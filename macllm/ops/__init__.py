"""Functions on arrays, by our kernels or MLX's operations."""

from __future__ import annotations

from .cpu import blas
from .dispatch import using

__all__ = ["using"]

blas.install()
