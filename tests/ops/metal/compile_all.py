"""Compile every Metal kernel as MLX does: `python -m tests.ops.metal.compile_all FOLDER`.

Writes the sources of all cases of `macllm doctor --kernels` into FOLDER. With `xcrun`, each is compiled for every
version of the language that the compiler supports; `--dry` only checks for code that Metal would reject, on any
machine. Ends with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx

from macllm.doctor.case import Case
from macllm.doctor.cases import cases
from macllm.ops.metal import KernelCall, executed_by, options
from tests.simulator import front
from tests.simulator.lint import findings
from tests.simulator.text import captured

VERSIONS = ("metal3.1", "metal3.2", "metal4.0")
"""Versions of the language in macOS 14, 15 and 26."""
BEFORE = '#include "mlx/backend/metal/kernels/utils.h"\n'
"""MLX puts the content of this file before a kernel's source, but does not print it."""
METAL = ("xcrun", "-sdk", "macosx", "metal", "-c", "-Werror", "-fno-fast-math")


def texts(some: Iterable[Case]) -> Iterator[tuple[str, str]]:
    """Name and source of each kernel that the cases need, once. Nothing is computed."""
    seen: set[str] = set()
    calls: list[KernelCall] = []

    def record(call: KernelCall) -> list[mx.array]:
        calls.append(call)
        return [mx.zeros(shape, dtype) for shape, dtype in call.outputs.values()]

    for case in some:
        with executed_by(record):
            case.kernel(case.make_inputs(0))
        for call in calls:
            text = captured(mx.fast.metal_kernel(**options(call)), call.arguments)
            if text not in seen:
                seen.add(text)
                yield call.kernel, text
        calls.clear()


def written(folder: Path, some: Iterable[Case]) -> list[Path]:
    """Write the sources, each to a file that can be compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kernel, text in texts(some):
        path = folder / f"{kernel}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.metal"
        path.write_text(BEFORE + text, encoding="ascii")
        paths.append(path)
    return paths


def headers() -> Path:
    """The folder of MLX's headers."""
    folder = Path(mx.__file__).parent / "include"
    if not (folder / "mlx/backend/metal/kernels/utils.h").is_file():
        sys.exit(f"{folder} has no headers of MLX's kernels")
    return folder


def compiled(path: Path, version: str) -> str | None:
    """Errors of Apple's compiler for a source; None without any. MLX's own headers may warn."""
    command = [*METAL, f"-std={version}", "-isystem", str(headers()), str(path), "-o", str(path.with_suffix(".air"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout or f"it ended with {done.returncode}") if done.returncode else None


def versions(folder: Path) -> list[str]:
    """The versions that the compiler supports."""
    empty = folder / "empty.metal"
    empty.write_text("#include <metal_stdlib>\n")
    known = []
    for version in VERSIONS:
        refusal = compiled(empty, version)
        print(f"{version}: {'compiles' if refusal is None else f'is not known here: {refusal.splitlines()[0]}'}")
        known += [version] if refusal is None else []
    return known


def complaints(path: Path) -> list[str]:
    """Constructs that Metal would reject in a source, as far as other compilers can tell."""
    text = path.read_text(encoding="ascii").removeprefix(BEFORE)
    found = [str(finding) for finding in findings(text)]
    return found + (front.complaints(text) if front.there() else [])


def main(some: Iterable[Case], arguments: list[str] | None = None) -> int:
    """Write the sources and check them."""
    parser = argparse.ArgumentParser(prog="python -m tests.ops.metal.compile_all", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the texts go")
    parser.add_argument("--dry", action="store_true", help="judge them without Apple's compiler")
    given = parser.parse_args(arguments)
    paths = written(given.folder, some)
    known = ["dry"] if given.dry else versions(given.folder)
    if not known:
        print("the compiler knows no version of Metal", file=sys.stderr)
        return 1
    wrong = 0
    for version in known:
        for path in paths:
            told = complaints(path) if given.dry else [refusal] if (refusal := compiled(path, version)) else []
            wrong += bool(told)
            print("\n".join([f"{version} {path.name}: {'REFUSED' if told else 'passes'}", *told]), flush=True)
    print(f"{len(paths)} texts, {wrong} refused")
    return int(wrong > 0 or not paths)


if __name__ == "__main__":
    sys.exit(main(cases()))
