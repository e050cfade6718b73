"""The simulator on emulated ARM: mutants are killed and kernels pass as on x86. Slow."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macllm.ops.cpu import build
from tests.simulator import compile as programs
from tests.simulator.mutants import kernel_mutants, mutations
from tests.simulator.mutants.mutations import FAULT_MUTANTS, FaultMutant

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="this is for machines that are no ARM"),
    pytest.mark.skipif(not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason="no compiler, or no emulator"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paths of the ARM compiler and emulator."""
    return tmp_path_factory.mktemp("arm")


@pytest.fixture(autouse=True)
def emulated(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs for ARM, each started by the emulator."""
    native = programs.program

    def program(*arguments: Any, **options: Any) -> Path:
        script = tmp_path / "program"
        script.write_text(f'#!/bin/sh\nexec {EMULATOR} {native(*arguments, **options)} "$@"\n')
        script.chmod(0o755)
        return script

    monkeypatch.setattr(build, "compiler", lambda: COMPILER)
    monkeypatch.setattr(programs, "COMMON", (*programs.COMMON, "-static"))
    monkeypatch.setattr(programs, "_linker", lambda: ("-static",))
    monkeypatch.setattr(programs, "program", program)
    monkeypatch.setattr(programs, "_folder", lambda: folder)
    for kept in (programs._precompiled, programs._machine):
        kept.cache_clear()
    yield
    for kept in (programs._precompiled, programs._machine):
        kept.cache_clear()


def test_a_correct_kernel_passes() -> None:
    for kernel in mutations.CORRECT:
        assert mutations.run(kernel, kernel.source).faults == []


@pytest.mark.parametrize("mutant", FAULT_MUTANTS[::4], ids=lambda mutant: mutant.name)
def test_mutants_are_killed(mutant: FaultMutant) -> None:
    assert mutant.fault in {fault.kind for fault in mutant.faults()}


@pytest.mark.parametrize(
    "case", [kernel_mutants._prefill, kernel_mutants._product, kernel_mutants._heads], ids=lambda case: case.__name__
)
def test_our_kernels_pass(case: kernel_mutants.Case) -> None:
    assert kernel_mutants.work(case)[1].faults == []
