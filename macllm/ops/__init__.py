"""Functions on arrays: the only code that knows kernels exist."""

from __future__ import annotations

from .cpu import blas

blas.install()
