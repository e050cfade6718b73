"""Environment of every test: an empty home and no network."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.ops import cpu
from macllm.ops.cpu import build
from macllm.ops.cpu.build import cache_folder
from tests.compiling import make_compiler

# A shell starts background jobs with interrupts ignored, and children inherit that; tests interrupt their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The simulator of Metal kernels needs GCC. On a Mac, `macllm doctor --kernels` runs the kernels themselves.
SIMULATED = ["simulator/*", "ops/metal/*", "doctor/test_doctor_kernels.py", "doctor/test_benchmark.py"]
SIMULATED += ["doctor/test_quick.py", "bench/test_traffic*.py", "nn/test_metal.py"]
collect_ignore_glob = [] if sys.platform == "linux" else SIMULATED

REPOSITORY = Path(__file__).resolve().parent.parent
# Compiling takes seconds: all tests share the kernels of this machine.
COMPILED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macllm" / "native"


def pytest_sessionstart() -> None:
    """Compile this machine's kernels once, before the first test: tests check which implementation runs."""
    if cpu.pending():
        print("compiling the CPU kernels for this machine, once: about a minute", file=sys.__stderr__)
        cpu.prepare(lambda done, total: None)


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Keep compiled kernels in the user's cache, so that tests with an empty home need not compile them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACLLM_NATIVE_CACHE", str(cache_folder()))
        yield


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths of homes, which a counter gives.

    `mktemp` would look through all folders of the tests before.
    """
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def own_home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty home and hub cache, and turn off the hub."""
    home = next(homes)
    home.mkdir()
    monkeypatch.setenv("MACLLM_HOME", str(home / "macllm"))
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", os.environ.get("MACLLM_NATIVE_CACHE") or str(COMPILED))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return home


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed MLX's generator, so that a test draws the same numbers in every run."""
    mx.random.seed(0)


@pytest.fixture
def repository() -> Path:
    """The folder of the source tree."""
    return REPOSITORY


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Path]:
    """Install a compiler with a delay in seconds per file and an empty cache; returns its log."""
    if sys.platform != "linux":
        pytest.skip("kernels are compiled on Linux")
    cpu.kernels()
    module = build.library()

    def install(seconds: float) -> Path:
        monkeypatch.setenv("CXX", str(make_compiler(tmp_path, module, seconds)))
        monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path / "kernels"))
        return tmp_path / "compiled"

    return install
