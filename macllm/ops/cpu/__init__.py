"""Native kernels for MLX's CPU backend on Linux, float32: compiled at first use, with gradients."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from pathlib import Path
from types import ModuleType

from . import blas, build
from .machine import compute_threads, wanted

log = logging.getLogger(__name__)

_module: ModuleType | None = None
_reason: str | None = None
_lock = threading.Lock()


def available() -> bool:
    """Whether the native kernels can be used, compiling them if need be (seconds, once per machine).

    Says once, in the log, why not; `reason` keeps it.
    """
    if notice := prepare():
        log.warning(notice)
    return _module is not None


def prepare(progress: build.Progress | None = None) -> str | None:
    """Load the kernels, compiled if need be; what the user should know where that failed, told only once."""
    with _lock:
        return _prepare(progress) if _module is None and _reason is None else None


def _prepare(progress: build.Progress | None) -> str | None:
    global _module, _reason
    if sys.platform != "linux" or not wanted():
        _reason = "MACLLM_NATIVE=0" if sys.platform == "linux" else "not Linux"
        return None
    try:
        module = _open(build.ensure(progress))
    except build.BuildError as error:
        _reason = str(error)
        return f"without native CPU kernels, slower: {_reason}" + (f" ({error.remedy})" if error.remedy else "")
    module.set_threads(compute_threads())
    blas.divide(module)
    _module = module
    return None


def reason() -> str | None:
    """Why the kernels cannot be used; None while they can or nobody has asked."""
    return _reason


def pending() -> bool:
    """Whether the kernels are wanted and have yet to be compiled, as far as can be seen without doing it."""
    try:
        return sys.platform == "linux" and wanted() and not build.whole(build.library())
    except build.BuildError:
        return False


def kernels() -> ModuleType:
    """The compiled module. Raises: RuntimeError where `available()` is false."""
    if not available() or _module is None:
        raise RuntimeError(_reason)
    return _module


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
