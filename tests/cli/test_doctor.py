"""`macllm doctor` on the kernels: what it says of them, and how it compiles them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.ops.cpu import build
from tests.compiling import cached

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are Linux's")

Compiler = Callable[[float], Path]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "macllm", "doctor", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def kernels(**environment: str) -> dict[str, str]:
    done = doctor("--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["kernels"]


def test_what_serves_how_it_is_compiled_and_how_to_turn_it_off() -> None:
    found = kernels(MACLLM_NATIVE_ARCH="")
    assert found["used"] == "yes"
    assert found["matmul"].startswith("OpenBLAS")
    assert found["compiler"] == build.compiler()
    assert "-march=native" in found["flags"]
    assert found["instruction_set"] == build.instruction_set()
    assert found["module"] == str(build.library())
    assert found["turned_off_by"] == "MACLLM_NATIVE=0"
    off = kernels(MACLLM_NATIVE="0")
    assert off["used"] == "no: MACLLM_NATIVE=0"
    assert off["matmul"] == "MLX's own, 1 threads (MACLLM_NATIVE=0)"


def test_it_compiles_only_when_it_is_asked_to_and_says_where(compiler: Compiler) -> None:
    log = compiler(0)
    assert kernels()["used"] == "not compiled yet: the first run does it, or macllm doctor --build"
    assert not log.read_text()
    first, again = doctor("--build"), doctor("--build")
    assert first.stdout == again.stdout == f"{build.library()}\n"
    assert first.stderr.startswith("compiled in ")
    assert again.stderr == "compiled before, for AVX2\n"
    assert cached() == ["lock", build.library().name]
    assert kernels()["used"] == "yes"
    assert json.loads(doctor("--build", "--json").stdout)["kernels"]["module"] == str(build.library())


def test_why_it_cannot_compile() -> None:
    without = {"PATH": "/nowhere", "CXX": ""}
    assert kernels(**without)["used"] == ("no: there is no C++ compiler (install g++, on Debian with apt install g++)")
    done = doctor("--build", **without)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.splitlines() == [
        "error: the CPU kernels cannot be compiled",
        "cause: there is no C++ compiler",
        "try: install g++, on Debian with apt install g++",
    ]
    done = doctor("--build", MACLLM_NATIVE_CACHE="/proc/kernels")
    assert done.returncode == 6
    assert "cause: cannot write /proc/kernels" in done.stderr
    done = doctor("--build", MACLLM_NATIVE_ARCH="pdp-11")
    assert done.returncode == 6
    assert "pdp-11" in done.stderr
    done = doctor("--build", MACLLM_NATIVE="0")
    assert done.returncode == 2
    assert "unset MACLLM_NATIVE" in done.stderr
