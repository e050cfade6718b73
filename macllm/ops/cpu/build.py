"""Compile the native kernels for this machine, once, into the cache directory."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
NAME = "macllm_native"
NANOBIND = "3.1.0"
"""The one whose ABI tag MLX 0.32's own bindings carry; with others the module loads but does not know mlx arrays."""

KERNELS = (
    "parallel",
    "pointwise",
    "rows",
    "rope",
    "attention",
    "gemm",
    "sgemm",
    "linear",
    "half",
    "quantized",
    "quantized_few",
    "quantized_many",
    "sample",
    "step",
)
COMMON = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG")
FAST = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
GLUE = ("-O1", "-DNB_COMPACT_ASSERTIONS", "-DNB_DOMAIN=mlx", "-fno-strict-aliasing")
LINK = ("-shared", "-pthread")
COMPILE_SECONDS = 600

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


class BuildError(Exception):
    """Why the kernels cannot be compiled here, in one line."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: $MACLLM_NATIVE_CACHE, else under $MACLLM_HOME, else in the XDG cache."""
    chosen, home = os.environ.get("MACLLM_NATIVE_CACHE"), os.environ.get("MACLLM_HOME")
    if chosen or home:
        return Path(chosen) if chosen else Path(str(home)) / "cache" / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macllm" / "native"


def library() -> Path:
    """Where the module for this source, these versions and this CPU is, built or not. Raises: BuildError."""
    return cache_folder() / _key() / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def ensure(progress: Progress | None = None) -> Path:
    """The compiled module, compiled now if it is not there; several processes may ask at once. Raises: BuildError."""
    target = library()
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock"):
            if not target.exists():
                _compile(target, progress)
    except OSError as error:
        raise BuildError(f"{error.strerror}: {error.filename}") from error
    return target


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("no C++ compiler: g++ or clang++ (Debian: apt install g++)")


def _includes() -> list[str]:
    """Header folders of Python, MLX and nanobind."""
    if importlib.util.find_spec("nanobind") is None:
        raise BuildError(f"nanobind is not installed: pip install nanobind=={NANOBIND}")
    version = importlib.metadata.version("nanobind")
    if version != NANOBIND:
        raise BuildError(f"nanobind is {version}, not the {NANOBIND} that MLX was built with")
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").exists():
        raise BuildError("Python's headers are not installed (Debian: apt install python3-dev)")
    nanobind = _package("nanobind")
    return [
        str(p) for p in (python, _package("mlx") / "include", nanobind / "include", nanobind / "ext/robin_map/include")
    ]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"{name} is not installed")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    # `mlx` is a namespace: the folder that counts is the one with the library in it.
    return next((folder for folder in folders if (folder / "lib").is_dir()), folders[0])


def _key() -> str:
    """A name for what the module depends on."""
    digest = hashlib.sha256()
    for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    compiler = _compiler()
    stamp = Path(compiler).resolve().stat()
    facts = (importlib.metadata.version("mlx"), NANOBIND, sys.version, compiler, stamp.st_size, stamp.st_mtime_ns)
    digest.update(repr((facts, COMMON, FAST, GLUE, LINK, _extra(), platform.machine(), _cpu())).encode())
    return digest.hexdigest()[:24]


def _extra() -> list[str]:
    """What the user adds with $CXXFLAGS: another instruction set, a sanitizer."""
    return shlex.split(os.environ.get("CXXFLAGS", ""))


def _cpu() -> str:
    """The features of the CPU: what is compiled for one may not run on another that shares the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(names)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes when the process does, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(target: Path, progress: Progress | None) -> None:
    # Here, because its import fails in a thread that outlives the main one.
    from concurrent.futures import ThreadPoolExecutor

    compiler = _compiler()
    includes = [flag for folder in _includes() for flag in ("-I", folder)]
    limited = ["-DPy_LIMITED_API=0x030C0000"] if _stable_abi() else []
    glue = [*COMMON, *GLUE, *includes, *limited]
    nanobind = _package("nanobind") / "src" / "nb_combined.cpp"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        jobs = [(source, glue) for source in (*sorted(HERE.glob("bindings*.cpp")), nanobind)]
        jobs += [(HERE / f"{name}.cpp", [*COMMON, *FAST, *_extra()]) for name in KERNELS]
        commands = {Path(folder) / f"{source.stem}.o": [compiler, *flags, "-c", str(source)] for source, flags in jobs}
        total = len(commands) + 1
        log.info("compiling the CPU kernels for this machine, once (about 15 seconds)")
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            running = [pool.submit(_run, [*command, "-o", str(out)]) for out, command in commands.items()]
            for done, job in enumerate(running, 1):
                job.result()
                log.debug("compiled %d of %d", done, total)
                if progress:
                    progress(done, total)
        built = Path(folder) / target.name
        libraries = [f"-L{_package('mlx') / 'lib'}", "-lmlx"]
        _run([compiler, *LINK, *_extra(), *map(str, commands), *libraries, "-o", str(built)])
        built.replace(target)
    if progress:
        progress(total, total)


def _stable_abi() -> bool:
    """Whether MLX's own module uses Python's stable ABI, which is then part of nanobind's tag."""
    spec = importlib.util.find_spec("mlx.core")
    return spec is not None and ".abi3." in str(spec.origin)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        raise BuildError(f"the compiler failed: {lines[0] if lines else error.returncode}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the compiler took more than {COMPILE_SECONDS} s") from error
