"""Compilation of kernels to programs, one each, and their cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from macllm.ops.cpu import build

from .spelling import Constants
from .text import INCLUDED, CompileError, cpp

__all__ = ["Build", "CompileError", "program", "understood"]

HERE = Path(__file__).parent / "msl"
Build = Literal["fast", "checked", "sanitized"]

COMMON = ("-std=c++20", "-g1", "-pthread", "-fno-pie", "-fno-thread-jumps", "-ffp-contract=off", f"-I{HERE}")
OF_A_BUILD: dict[Build, tuple[str, ...]] = {
    "fast": ("-O2",),
    # The sanitizer's calls go to hooks.cpp. Uninitialised locals get a pattern.
    "checked": (
        "-Werror=uninitialized",
        "-Werror=maybe-uninitialized",
        "-Og",  # compiling takes longer than running
        "-fsanitize=thread,alignment,bounds,shift,integer-divide-by-zero",
        "-fsanitize-undefined-trap-on-error",
        "-ftrivial-auto-var-init=pattern",
        "--param=tsan-instrument-func-entry-exit=0",
    ),
    "sanitized": (
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-ftrivial-auto-var-init=pattern",
    ),
}
MOST_BYTES = 1 << 30
"""Largest size of all cached programs."""
MACHINE = ("fiber", "machine", "memory", "main")


def program(text: str, how: Build = "checked", flags: tuple[str, ...] = (), constants: Constants | None = None) -> Path:
    """The program for a captured kernel. Raises: CompileError."""
    code = cpp(text, constants)
    options = (*COMMON, *OF_A_BUILD[how], *flags)
    name = hashlib.sha256(repr((code, options, _sources())).encode()).hexdigest()[:24]
    out = _folder() / name
    with suppress(FileNotFoundError):
        os.utime(out)  # the least recently used programs are removed first
        return out
    _make_room()
    with tempfile.TemporaryDirectory(dir=_folder()) as work:
        source, made = Path(work) / "kernel.cpp", Path(work) / "kernel"
        source.write_text(code)
        known = ["-include", str(_precompiled(options))]
        run = [build.compiler(), *options, *known, "-c", str(source), "-o", f"{made}.o"]
        _call(run)
        linked = [*_linker(), *(["-fsanitize=address,undefined"] if how == "sanitized" else [])]
        _call([build.compiler(), "-pthread", "-no-pie", *linked, f"{made}.o", *_machine(how), "-o", str(made)])
        made.replace(out)
    return out


def understood(code: str) -> None:
    """Check that C++ functions compile, without linking. Raises: CompileError."""
    options = (*COMMON, *OF_A_BUILD["checked"])
    with tempfile.TemporaryDirectory(dir=_folder()) as work:
        source = Path(work) / "functions.cpp"
        source.write_text(code)
        _call([build.compiler(), *options, "-include", str(_precompiled(options)), "-fsyntax-only", str(source)])


def _make_room() -> None:
    """Remove the least recently used programs beyond `MOST_BYTES`."""
    found = []
    for path in _folder().iterdir():
        with suppress(FileNotFoundError):  # another process may remove programs, too
            about = path.stat()
            if path.is_file() and not path.suffix:
                found.append((about.st_mtime, about.st_size, path))
    spare = sum(size for _, size, _ in found) - MOST_BYTES
    for _, size, path in sorted(found):
        if spare <= 0:
            return
        path.unlink(missing_ok=True)
        spare -= size


@cache
def _linker() -> tuple[str, ...]:
    """Arguments for gold, the faster linker, if installed."""
    return ("-fuse-ld=gold",) if shutil.which("ld.gold") else ()


def _folder() -> Path:
    folder = build.cache_folder().parent / "simulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _sources() -> str:
    content = [path.name.encode() + path.read_bytes() for path in sorted(HERE.iterdir())]
    return hashlib.sha256(b"".join(content)).hexdigest()


@cache
def _precompiled(options: tuple[str, ...]) -> Path:
    """A precompiled header of all that kernels include, which saves two thirds of a kernel's compile time."""
    folder = _folder() / hashlib.sha256(repr((options, _sources())).encode()).hexdigest()[:24]
    header = folder / "known.h"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as work:
            draft = Path(work) / "draft"
            draft.mkdir()
            (draft / "known.h").write_text("".join(f'#include "{name}"\n' for name in INCLUDED))
            command = [build.compiler(), *options, "-x", "c++-header", str(draft / "known.h"), "-o"]
            _call([*command, str(draft / "known.h.gch")])
            with suppress(OSError):  # another process was faster
                draft.rename(folder)
    return header


@cache
def _machine(how: Build) -> tuple[str, ...]:
    """Object files of the simulator's runtime, which is not instrumented."""
    objects = []
    for name in (*MACHINE, "hooks" if how == "checked" else "plain"):
        out = _folder() / f"{_sources()[:16]}-{name}.o"
        if not out.exists():
            with tempfile.TemporaryDirectory(dir=_folder()) as work:
                made = Path(work) / "made.o"
                _call([build.compiler(), *COMMON, "-O2", "-c", str(HERE / f"{name}.cpp"), "-o", str(made)])
                made.replace(out)
        objects.append(str(out))
    return tuple(objects)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        lines = [
            line for line in done.stderr.splitlines() if "error" in line or "undefined" in line
        ] or done.stderr.splitlines()
        raise CompileError("\n".join(lines[:8]))
