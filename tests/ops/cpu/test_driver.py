"""The kernels without MLX: correct in every instruction set, and clean under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from macllm.ops.cpu import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="the native kernels are for Linux"),
]

DRIVER = Path(__file__).parent / "driver"
THREADS = "3"
X86 = platform.machine() == "x86_64"
CROSS = "aarch64-linux-gnu-g++"
QEMU = ("qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu")


@dataclass(frozen=True)
class Target:
    """A compilation target: compiler flags, and the command that runs the result."""

    architecture: str = "native"
    flags: str = ""
    needs: str = ""  # a flag of /proc/cpuinfo
    runner: tuple[str, ...] = ()
    compiler: str = ""
    sanitized: bool = False


TARGETS = {
    "native": Target(),
    "AVX-512 without VNNI": Target(flags="-mno-avx512vnni", needs="avx512f"),
    "AVX2": Target("x86-64-v3", needs="avx2"),
    "SSE4.2": Target("x86-64-v2", needs="sse4_2"),
    "NEON": Target("armv8-a", runner=QEMU, compiler=CROSS),
    "NEON with dot products": Target("armv8.2-a+dotprod", runner=QEMU, compiler=CROSS),
    "address and undefined behaviour": Target(
        flags="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer", sanitized=True
    ),
    "threads": Target(flags="-O1 -g -fsanitize=thread", sanitized=True),
}


def _objects(compiler: str, sources: list[Path], flags: list[str], folder: Path) -> list[Path]:
    def run(source: Path) -> Path:
        out = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([compiler, *flags, "-c", str(source), "-o", str(out)], check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, sources))


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Object files of the driver for a compiler, with little optimization, for exact float64."""

    @cache
    def made(compiler: str) -> list[Path]:
        flags = ["-std=c++20", "-g", "-O1", "-I", str(build.HERE / "kernels")]
        return _objects(compiler, sorted(DRIVER.glob("*.cpp")), flags, tmp_path_factory.mktemp("references"))

    return made


def _fixed_addresses() -> list[str]:
    """Prefix of a command that turns off address randomization, for older sanitizers."""
    fixed = ["setarch", "-R"]
    return [] if subprocess.run([*fixed, "true"], capture_output=True).returncode else fixed


def _absent(target: Target) -> str | None:
    """Reason why a target is unavailable here."""
    if not X86 and (target.compiler or target.needs):
        return "the native kernels are NEON's here"
    if target.needs and target.needs not in Path("/proc/cpuinfo").read_text().split():
        return f"this CPU has no {target.needs}"
    for program in (target.compiler, *target.runner[:1]):
        if program and not shutil.which(program):
            return f"there is no {program} here"
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_every_kernel_is_correct(
    name: str, references: Callable[[str], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[name]
    if reason := _absent(target):
        pytest.skip(reason)
    monkeypatch.setenv("MACLLM_NATIVE_ARCH", target.architecture)
    monkeypatch.setenv("MACLLM_NATIVE_FLAGS", target.flags)
    if target.compiler:
        monkeypatch.setenv("CXX", target.compiler)
    compiler, program = build.compiler(), tmp_path / "driver"
    kernels = _objects(
        compiler, [build.HERE / "kernels" / f"{name}.cpp" for name in build.KERNELS], build.flags(), tmp_path
    )
    objects = map(str, [*kernels, *references(compiler)])
    subprocess.run([compiler, "-pthread", *target.flags.split(), *objects, "-o", str(program)], check=True)
    command = [*target.runner, *(_fixed_addresses() if target.sanitized else []), str(program), THREADS]
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
