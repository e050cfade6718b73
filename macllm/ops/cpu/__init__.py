"""Native float32 kernels with gradients for MLX's CPU backend on Linux, compiled once per machine.

MLX's operations are used until they are compiled. They are loaded once compiled, when no completion is in progress
(`held`), so that the implementation does not change within a completion.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import blas, build, estimate
from .machine import compute_threads, physical_cores, wanted

if TYPE_CHECKING:
    from .compilation import Compilation, Progress

log = logging.getLogger(__name__)

_module: ModuleType | None = None
_reason: str | None = None
_compilation: Compilation | None = None
_completions = 0
_lock = threading.Lock()


@dataclass(frozen=True)
class Compiling:
    """Progress of a compilation in files; `beside` means in the background, `over` that it has ended."""

    done: int
    total: int
    beside: bool
    over: bool
    notice: str | None = None  # a message for the user if the kernels are unavailable


_watch: Callable[[Compiling], object] | None = None


def available() -> bool:
    """True if the native kernels are loaded. Never waits: missing kernels are compiled in the background.

    The reason if they are unavailable goes to the watcher or the log once; `reason` returns it.
    """
    if _module is None and _reason is None:
        _announce(begin())
    return _module is not None


def begin() -> str | None:
    """Load the kernels if they are compiled and not held back, else start compiling them.

    Returns a message for the user if they are unavailable, once only.
    """
    global _compilation
    if _compilation is not None and (not _compilation.over.is_set() or _completions):
        return None
    with _lock:
        if _module is not None or _reason is not None or not _allowed():
            return None
        try:
            if _compilation is None and not build.whole(build.library()):
                _compilation = _compile(beside=True)
            elif _compilation is None or _compilation.over.is_set():
                _take(build.library() if _compilation is None else _compilation.result())
        except build.BuildError as error:
            notice = _refuse(error)
            return None if _compilation is not None and _compilation.ended else notice
    return None


def prepare(progress: Progress | None = None) -> str | None:
    """Wait for the kernels and load them; returns a message if they are unavailable, once only."""
    global _compilation
    with _lock:
        if _module is not None or _reason is not None or not _allowed():
            return None
        try:
            if not build.whole(build.library()) and (_compilation is None or _compilation.beside):
                if _compilation is not None:
                    _compilation.end()  # finished object files stay in the cache
                if progress is None and _watch is None:
                    log.warning("compiling the CPU kernels for this machine, once: about a minute")
                _compilation = _compile(beside=False)
        except build.BuildError as error:
            return _refuse(error)
    if _compilation is not None:
        _compilation.wait(progress)
    return begin()


def wait() -> None:
    """Wait for the kernels before long work. Messages go to the watcher or the log."""
    _announce(prepare())


def prepare_for(floats: int, packed: int) -> None:
    """Prepare for a model of this size: wait for the kernels unless MLX's operations answer sooner.

    `floats` and `packed` count float and quantized parameters. Messages go to the watcher or the log.
    """
    if _module is not None or _reason is not None:
        return
    waits = False
    with suppress(build.BuildError):
        if pending():
            cores, parts = physical_cores(), build.objects()
            missing = sum(not build.whole(part.path) for part in parts) + 1
            compiling = estimate.compile_seconds(missing, len(parts) + 1, cores=cores)
            openblas = blas.install().reason is None
            answering = estimate.answer_seconds(floats, packed, cores=cores, openblas=openblas)
            waits = answering > compiling or not estimate.fits(floats)
    _announce(prepare() if waits else begin())


def watch(watcher: Callable[[Compiling], object] | None) -> None:
    """Call `watcher`, from any thread, when a compilation begins, at its steps and at its end."""
    global _watch
    _watch = watcher


@contextmanager
def held() -> Iterator[None]:
    """Keep the current implementation in this block, which is a completion."""
    global _completions
    available()
    with _lock:
        _completions += 1
    try:
        yield
    finally:
        with _lock:
            _completions -= 1


def end() -> None:
    """Cancel a compilation; only finished object files stay in the cache."""
    if _compilation is not None:
        _compilation.end()


def compiling() -> Compiling | None:
    """State of the background compilation; None if there is none."""
    return None if _compilation is None else _state(_compilation)


def reason() -> str | None:
    """Reason why the kernels cannot be used; None while they can or before the first use."""
    return _reason


def pending() -> bool:
    """True if the kernels are enabled and not compiled yet, as far as known without compiling."""
    try:
        return sys.platform == "linux" and wanted() and not build.whole(build.library())
    except build.BuildError:
        return False


def kernels() -> ModuleType:
    """The compiled module. Raises: RuntimeError if `available()` is false."""
    if not available() or _module is None:
        raise RuntimeError(_reason or "the kernels are being compiled")
    return _module


def _allowed() -> bool:
    global _reason
    if sys.platform != "linux" or not wanted():
        _reason = "MACLLM_NATIVE=0" if sys.platform == "linux" else "not Linux"
    return _reason is None


def _take(path: Path) -> None:
    """Load the kernels and use them from now on."""
    global _module
    module = _open(path)
    module.set_threads(compute_threads())
    blas.divide(module)
    _module = module


def _refuse(error: build.BuildError) -> str:
    global _reason
    _reason = str(error)
    return f"without native CPU kernels, slower: {_reason}" + (f" ({error.remedy})" if error.remedy else "")


def _announce(notice: str | None) -> None:
    if notice is not None and _watch is not None:
        _watch(Compiling(0, 0, beside=True, over=True, notice=notice))
    elif notice is not None:
        log.warning(notice)


def _compile(*, beside: bool) -> Compilation:
    """Begin a compilation. Imports the modules that run child processes, which few processes need."""
    from .compilation import Compilation

    return Compilation(_notify, beside=beside)


def _notify(compilation: Compilation) -> None:
    if _watch is not None:
        _watch(_state(compilation))


def _state(compilation: Compilation) -> Compiling:
    return Compiling(compilation.done, compilation.total, compilation.beside, compilation.over.is_set())


def _open(path: Path) -> ModuleType:
    """Load the module at `path` and call it once: one built for another MLX loads, then fails."""
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
