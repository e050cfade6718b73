"""Functions on arrays: the only code that knows kernels exist."""

from __future__ import annotations

from .cpu import blas
from .dispatch import using

__all__ = ["using"]

blas.install()
