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
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .machine import physical_cores

HERE = Path(__file__).parent
NAME = "macllm_native"
NANOBIND = "3.1.0"
"""The one whose ABI tag MLX 0.32's own bindings carry; with others the module loads but does not know mlx arrays."""

KERNELS = (
    "parallel",
    "pointwise",
    "rows",
    "rope",
    "kv",
    "kv_few",
    "attention",
    "attention_vjp",
    "gemm",
    "sgemm",
    "linear",
    "half",
    "quantized",
    "quantized_few",
    "quantized_many",
    "sample",
    "penalties",
    "step",
)
COMMON = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG")
FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
GLUE = ("-O1", "-DNB_COMPACT_ASSERTIONS", "-DNB_DOMAIN=mlx", "-fno-strict-aliasing")
LINK = ("-shared", "-pthread")
COMPILE_SECONDS = 3600
LOOK_SECONDS = 0.02
ANOTHER_FOLDER = "set MACLLM_NATIVE_CACHE to a folder that can be written"
HASH_BYTES = 32  # at the end of a module, of all that is before them
INSTRUCTION_SETS = {
    "__AVX512VNNI__": "AVX-512 VNNI",
    "__AVX512F__": "AVX-512",
    "__AVX2__": "AVX2",
    "__AVX__": "AVX",
    "__ARM_FEATURE_DOTPROD": "NEON with dot products",
    "__ARM_NEON": "NEON",
}
"""What the kernels have code for, the best first, by the macro with which a compiler says that it may use it."""

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called many times a second with the steps done and the steps in all; what it raises gives the compilation up."""


class BuildError(Exception):
    """Why the kernels cannot be compiled here, in one line, and what the user can do about it."""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


def cache_folder() -> Path:
    """Where compiled kernels are kept: $MACLLM_NATIVE_CACHE, else under $MACLLM_HOME, else in the XDG cache."""
    chosen, home = os.environ.get("MACLLM_NATIVE_CACHE"), os.environ.get("MACLLM_HOME")
    if chosen or home:
        return Path(chosen) if chosen else Path(str(home)) / "cache" / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macllm" / "native"


def library() -> Path:
    """Where the module for this source, these versions and this CPU is, built or not. Raises: BuildError."""
    return cache_folder() / _key() / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def whole(module: Path) -> bool:
    """Whether a file is a module as it was compiled: the loader would run what is left of a damaged one, and crash."""
    try:
        content = module.read_bytes()
    except OSError:
        return False
    return len(content) > HASH_BYTES and _hash(content[:-HASH_BYTES]) == content[-HASH_BYTES:]


def ensure(progress: Progress | None = None) -> Path:
    """The compiled module, compiled now if it is not there; several processes may ask at once. Raises: BuildError."""
    target = library()
    if whole(target):
        return target
    tell = progress or (lambda done, total: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "lock", tell):
            if not whole(target):
                _compile(target, tell)
    except OSError as error:
        raise BuildError(
            f"cannot write {error.filename or target.parent}: {error.strerror}",
            ANOTHER_FOLDER,
        ) from error
    return target


def compiler() -> str:
    """The path of the C++ compiler: $CXX, g++ or clang++. Raises: BuildError."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("there is no C++ compiler", "install g++, on Debian with apt install g++")


def flags() -> list[str]:
    """How kernels are compiled: $MACLLM_NATIVE_ARCH is the CPU, else this one; $MACLLM_NATIVE_FLAGS come last."""
    architecture = os.environ.get("MACLLM_NATIVE_ARCH") or "native"
    return [*COMMON, *FAST, f"-march={architecture}", *_extra()]


def instruction_set() -> str:
    """The best of the instructions that kernels compiled now would use. Raises: BuildError."""
    command = [compiler(), *flags(), "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise _failure(done.stderr)
    macros = {line.split()[1] for line in done.stdout.splitlines()}
    return next((name for macro, name in INSTRUCTION_SETS.items() if macro in macros), "plain")


def _extra() -> list[str]:
    return shlex.split(os.environ.get("MACLLM_NATIVE_FLAGS", ""))


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _includes() -> list[str]:
    """Header folders of Python, MLX and nanobind."""
    if importlib.util.find_spec("nanobind") is None:
        raise BuildError("nanobind is not installed", f"pip install nanobind=={NANOBIND}")
    version = importlib.metadata.version("nanobind")
    if version != NANOBIND:
        raise BuildError(
            f"nanobind is {version}, not the {NANOBIND} that MLX was built with", f"pip install nanobind=={NANOBIND}"
        )
    python = Path(sysconfig.get_paths()["include"])
    if not (python / "Python.h").exists():
        raise BuildError("Python's headers are not installed", "install them, on Debian with apt install python3-dev")
    nanobind = _package("nanobind")
    return [
        str(p) for p in (python, _package("mlx") / "include", nanobind / "include", nanobind / "ext/robin_map/include")
    ]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"{name} is not installed", f"pip install {name}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    # `mlx` is a namespace: the folder that counts is the one with the library in it.
    return next((folder for folder in folders if (folder / "lib").is_dir()), folders[0])


def _key() -> str:
    """A name for what the module depends on."""
    digest = hashlib.sha256()
    for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    stamp = Path(compiler()).resolve().stat()
    facts = (importlib.metadata.version("mlx"), NANOBIND, sys.version, compiler(), stamp.st_size, stamp.st_mtime_ns)
    digest.update(repr((facts, flags(), GLUE, LINK, platform.machine(), _cpu())).encode())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """The features of the CPU: what is compiled for one may not run on another that shares the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(names)))


@contextmanager
def _locked(path: Path, tell: Progress) -> Iterator[None]:
    """One process at a time; the lock goes when the process does, however it ends."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                tell(0, len(KERNELS))
                time.sleep(LOOK_SECONDS)
        yield


def _compile(target: Path, tell: Progress) -> None:
    for left in target.parent.glob("tmp*"):  # of a process that was killed: nobody else is here
        shutil.rmtree(left, ignore_errors=True)
    includes = [flag for folder in _includes() for flag in ("-I", folder)]
    limited = ["-DPy_LIMITED_API=0x030C0000"] if _stable_abi() else []
    glue = [*COMMON, *GLUE, *includes, *limited, *_extra()]
    nanobind = _package("nanobind") / "src" / "nb_combined.cpp"
    with tempfile.TemporaryDirectory(prefix="tmp", dir=target.parent) as name:
        folder = Path(name)
        # The kernels first: if it is the flags that are wrong, they show it.
        jobs = [(HERE / f"{name}.cpp", flags()) for name in KERNELS]
        jobs += [(source, glue) for source in (*sorted(HERE.glob("bindings*.cpp")), nanobind)]
        objects = {folder / f"{source.stem}.o": ["-c", str(source), *of_source] for source, of_source in jobs}
        built = folder / target.name
        total = len(objects) + 1
        log.info("compiling the CPU kernels for this machine, once")
        _run_all(objects, lambda done: tell(done, total))
        libraries = [f"-L{_package('mlx') / 'lib'}", "-lmlx"]
        link = {built: [*LINK, *_extra(), *map(str, objects), *libraries]}
        _run_all(link, lambda done: tell(len(objects) + done, total))
        content = built.read_bytes()
        with built.open("ab") as file:
            file.write(_hash(content))
            file.flush()
            os.fsync(file.fileno())
        built.replace(target)


def _stable_abi() -> bool:
    """Whether MLX's own module uses Python's stable ABI, which is then part of nanobind's tag."""
    spec = importlib.util.find_spec("mlx.core")
    return spec is not None and ".abi3." in str(spec.origin)


def _run_all(arguments: Mapping[Path, list[str]], tell: Callable[[int], object]) -> None:
    """Compile each file from its arguments, as many at a time as there are cores. None of them outlives this call."""
    waiting, running = list(arguments), list[_Compiler]()
    end = time.monotonic() + COMPILE_SECONDS
    try:
        while waiting or running:
            while waiting and len(running) < physical_cores():
                out = waiting.pop(0)
                running.append(_Compiler([*arguments[out], "-o", str(out)], out.parent))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                if (told := one.end()) is not None:
                    raise _failure(told)
            if time.monotonic() > end:
                raise BuildError(f"the compiler took more than {COMPILE_SECONDS} s")
            tell(len(arguments) - len(waiting) - len(running))
            time.sleep(LOOK_SECONDS)
    finally:
        for one in running:
            with suppress(ProcessLookupError):
                os.killpg(one.process.pid, signal.SIGKILL)
            one.end()


class _Compiler:
    """A compiler at work, with its own files in `folder`."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._log = open(os.memfd_create("compiler"), "w+b")  # noqa: PTH123, SIM115  # the disk may be full
        self.process = subprocess.Popen(
            [compiler(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)},
            process_group=0,  # a compiler is several processes, which have to be ended together
        )

    def end(self) -> str | None:
        """Wait for its end; what it wrote if it failed."""
        with self._log:
            failed = self.process.wait() != 0
            self._log.seek(0)
            return self._log.read().decode(errors="replace") if failed else None


def _failure(told: str) -> BuildError:
    lines = [line for line in told.splitlines() if "error" in line.lower()] or told.splitlines()
    why = lines[0] if lines else "it does not say why"
    remedy = "set CXX to another compiler, or MACLLM_NATIVE=0 to go without"
    return BuildError(f"the compiler failed: {why}", ANOTHER_FOLDER if "No space left" in why else remedy)
