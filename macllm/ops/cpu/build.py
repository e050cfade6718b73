"""Cache paths and compiler commands of the native kernels for this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from macllm.files import sync

HERE = Path(__file__).parent
NAME = "macllm_native"
NANOBIND = "3.1.0"
"""The version with the ABI tag of MLX 0.32; built with others, the module does not accept mlx arrays."""

KERNELS = (
    "penalties",
    "rope",
    "sgemm",
    "parallel",
    "half",
    "step",
    "kv",
    "kv_few",
    "attention_vjp",
    "pointwise",
    "quantized_many",
    "rows",
    "sample",
    "gemm",
    "attention",
    "quantized",
    "quantized_few",
    "linear",
)
"""Sources, the fastest to compile first, so that an interrupted compilation keeps most files."""
COMMON = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-DNDEBUG")
FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
GLUE = ("-O1", "-DNB_COMPACT_ASSERTIONS", "-DNB_DOMAIN=mlx", "-fno-strict-aliasing")
LINK = ("-shared", "-pthread")
COMPILE_SECONDS = 3600
ANOTHER_FOLDER = "set MACLLM_NATIVE_CACHE to a folder that can be written"
HASH_BYTES = 32  # at the end of a module or object file: the hash of its content
INSTRUCTION_SETS = {
    "__AVX512VNNI__": "AVX-512 VNNI",
    "__AVX512F__": "AVX-512",
    "__AVX2__": "AVX2",
    "__AVX__": "AVX",
    "__ARM_FEATURE_DOTPROD": "NEON with dot products",
    "__ARM_NEON": "NEON",
}
"""Instruction sets that the kernels support, the best first, by their compiler macro."""


class BuildError(Exception):
    """A failed compilation: the reason in one line, and a remedy for the user."""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the remedy when the error crosses a process boundary."""
        return (BuildError, (str(self), self.remedy))


@dataclass(frozen=True)
class Object:
    """An object file: its path in the cache, and the compiler's arguments except for the path."""

    path: Path
    arguments: tuple[str, ...]


def cache_folder() -> Path:
    """Folder of compiled kernels: $MACLLM_NATIVE_CACHE, else under $MACLLM_HOME, else the XDG cache."""
    chosen, home = os.environ.get("MACLLM_NATIVE_CACHE"), os.environ.get("MACLLM_HOME")
    if chosen or home:
        return Path(chosen) if chosen else Path(str(home)) / "cache" / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macllm" / "native"


def library() -> Path:
    """Path of the module for this source, these versions and this CPU, built or not. Raises: BuildError."""
    facts = (*_compiler_facts(), *_interface_facts(), tuple(flags()), GLUE, LINK)
    return cache_folder() / _key(HERE, facts) / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def whole(path: Path) -> bool:
    """True if the file's content matches its hash: loading a damaged module would crash."""
    try:
        found = path.stat()
        return _whole(path, found.st_ino, found.st_size, found.st_mtime_ns)
    except OSError:
        return False


@lru_cache(maxsize=64)
def _whole(path: Path, *_version: int) -> bool:
    content = path.read_bytes()
    return len(content) > HASH_BYTES and _hash(content[:-HASH_BYTES]) == content[-HASH_BYTES:]


def compiler() -> str:
    """The path of the C++ compiler: $CXX, g++ or clang++. Raises: BuildError."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError("there is no C++ compiler", "install g++, on Debian with apt install g++")


def flags() -> list[str]:
    """Compiler flags: for $MACLLM_NATIVE_ARCH, else this CPU; $MACLLM_NATIVE_FLAGS come last."""
    architecture = os.environ.get("MACLLM_NATIVE_ARCH") or "native"
    return [*COMMON, *FAST, f"-march={architecture}", *_extra()]


def instruction_set() -> str:
    """The best instruction set that the compiler uses for the kernels. Raises: BuildError."""
    command = [compiler(), *flags(), "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode:
        raise failure(done.stderr)
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
    from importlib.metadata import version as installed_version  # slow to import, and needed to compile only

    version = installed_version("nanobind")
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
    # `mlx` is a namespace package: use the folder with the library.
    return next((folder for folder in folders if (folder / "lib").is_dir()), folders[0])


@lru_cache(maxsize=8)
def _key(folder: Path, facts: tuple[object, ...]) -> str:
    """Hash of all that the module depends on: the sources in `folder`, read once, and `facts`."""
    return _digest(sorted([*folder.glob("*/*.cpp"), *folder.glob("*/*.h")]), facts)


def _digest(files: list[Path], facts: tuple[object, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:24]


def _compiler_facts() -> tuple[object, ...]:
    """Compiler and CPU, on which object files depend."""
    stamp = Path(compiler()).resolve().stat()
    return compiler(), stamp.st_size, stamp.st_mtime_ns, platform.machine(), _cpu()


def _interface_facts() -> tuple[object, ...]:
    """Versions of the headers that the bindings include."""
    import mlx.core as mx

    return mx.__version__, NANOBIND, sys.version  # pyright: ignore[reportAttributeAccessIssue]


def _cpu() -> str:
    """Features of the CPU: another CPU that shares the cache may not run code compiled for this one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(names)))


def objects() -> list[Object]:
    """The module's object files; kernels first, so that wrong flags fail early. Raises: BuildError."""
    includes = [flag for folder in _includes() for flag in ("-I", folder)]
    limited = ["-DPy_LIMITED_API=0x030C0000"] if _stable_abi() else []
    glue = [*COMMON, *GLUE, *includes, *limited, *_extra()]
    nanobind = _package("nanobind") / "src" / "nb_combined.cpp"
    headers, folder = sorted(HERE.glob("*/*.h")), cache_folder() / "objects"
    kernels = [(HERE / "kernels" / f"{name}.cpp", flags(), ()) for name in KERNELS]
    bindings = [(source, glue, _interface_facts()) for source in (*sorted(HERE.glob("bindings/*.cpp")), nanobind)]
    made: list[Object] = []
    for source, options, facts in (*kernels, *bindings):
        key = _digest([*headers, source], (*_compiler_facts(), *facts, options))
        made.append(Object(folder / f"{source.stem}-{key}.o", ("-c", str(source), *options)))
    return made


def link_arguments(objects: list[Object]) -> list[str]:
    """The compiler's arguments to link object files, except for the output path."""
    libraries = [f"-L{_package('mlx') / 'lib'}", "-lmlx"]
    return [*LINK, *_extra(), *(str(each.path) for each in objects), *libraries]


def seal(path: Path) -> None:
    """Append its hash to a module or object file (linkers and loaders ignore it), and sync to disk."""
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(_hash(content))
    sync(path)


def _stable_abi() -> bool:
    """True if MLX's module uses Python's stable ABI, which is part of nanobind's tag."""
    spec = importlib.util.find_spec("mlx.core")
    return spec is not None and ".abi3." in str(spec.origin)


def failure(output: str) -> BuildError:
    """The error in a compiler's output."""
    lines = [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines()
    why = lines[0] if lines else "it gives no reason"
    remedy = "set CXX to another compiler, or MACLLM_NATIVE=0 to go without"
    return BuildError(f"the compiler failed: {why}", ANOTHER_FOLDER if "No space left" in why else remedy)
