from __future__ import annotations

import sys
from types import ModuleType

import pytest

from macllm.ops import cpu


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """The native kernels; compiled by the first run on a machine."""
    if sys.platform != "linux":
        pytest.skip("the native kernels are for MLX's CPU backend on Linux")
    return cpu.kernels()
