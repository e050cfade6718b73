"""Native kernels for MLX's CPU backend on Linux, float32: compiled at first use, with gradients."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType

from . import blas, build
from .machine import compute_threads, wanted

log = logging.getLogger(__name__)

_module: ModuleType | None = None
_reason: str | None = None


def available(progress: build.Progress | None = None) -> bool:
    """Whether the native kernels can be used, compiling them if need be (seconds, once per machine).

    Says once, in the log, why not; `reason` keeps it.
    """
    global _module, _reason
    if _module is None and _reason is None:
        try:
            _module = _load(progress)
        except build.BuildError as error:
            _reason = str(error)
            log.warning("without native CPU kernels, slower: %s", _reason)
    return _module is not None


def reason() -> str | None:
    """Why the kernels cannot be used; None while they can or nobody has asked."""
    return _reason


def built() -> bool:
    """Whether the kernels for this machine are compiled already."""
    try:
        return sys.platform == "linux" and build.library().exists()
    except build.BuildError:
        return False


def kernels() -> ModuleType:
    """The compiled module. Raises: RuntimeError where `available()` is false."""
    if not available() or _module is None:
        raise RuntimeError(_reason)
    return _module


def _load(progress: build.Progress | None) -> ModuleType | None:
    global _reason
    if sys.platform != "linux" or not wanted():
        _reason = "MACLLM_NATIVE=0" if sys.platform == "linux" else "not Linux"
        return None
    module = _open(build.ensure(progress))
    module.set_threads(compute_threads())
    blas.divide(module)
    return module


def _open(path: Path) -> ModuleType:
    """The module at `path`, tried on one array: one built for another MLX loads but fails when it is called."""
    import mlx.core as mx

    try:
        spec = importlib.util.spec_from_file_location("macllm_native", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.softmax(mx.zeros(1))
    except (ImportError, TypeError) as error:
        raise build.BuildError(f"the compiled kernels do not fit this MLX: {error}") from error
    return module
