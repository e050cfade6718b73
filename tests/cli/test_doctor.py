"""`macllm doctor` on the native kernels: its report, and their compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from macllm.doctor import machine
from macllm.ops.cpu import build
from tests.compiling import cache_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are Linux's")

Compiler = Callable[[float], Path]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "macllm", "doctor", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def kernels(**environment: str) -> dict[str, str]:
    done = doctor("--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["kernels"]


def test_doctor_reports_the_kernels_in_use_and_their_compilation() -> None:
    found = kernels(MACLLM_NATIVE_ARCH="")
    assert found["used"] == "yes"
    assert found["matmul"].startswith("OpenBLAS")
    assert found["compiler"] == build.compiler()
    assert "-march=native" in found["flags"]
    assert found["instruction_set"] == build.instruction_set()
    assert found["module"] == str(build.library())
    assert "MACLLM_NATIVE" not in json.dumps(found)


@pytest.mark.parametrize("more", [{}, {"PATH": "/nowhere", "CXX": ""}], ids=["compiler", "no compiler"])
def test_kernels_that_are_turned_off_are_reported_without_further_facts(more: dict[str, str]) -> None:
    off = {"used": "no: MACLLM_NATIVE=0", "matmul": "MLX's own, 1 thread (MACLLM_NATIVE=0)"}
    assert kernels(MACLLM_NATIVE="0", **more) == off


@pytest.mark.parametrize("value", ["", "1"])
def test_a_switch_that_is_on_is_not_reported(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACLLM_NATIVE", value)
    found = machine.facts()["kernels"]
    assert found["used"] == "yes"
    assert "MACLLM_NATIVE" not in json.dumps(found)


@pytest.mark.parametrize("value", ["off", "false", "2"])
def test_a_switch_with_an_invalid_value_is_reported_as_ignored(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACLLM_NATIVE", value)
    found = machine.facts()["kernels"]
    assert found["used"] == "yes"
    assert found["ignored"] == f"MACLLM_NATIVE={value}: neither 0 nor 1"


def test_kernels_that_fail_to_load_are_reported_as_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm.ops.cpu.available", lambda: False)
    monkeypatch.setattr("macllm.ops.cpu.reason", lambda: "the compiled kernels do not fit this MLX")
    assert machine.facts()["kernels"]["used"] == "no: the compiled kernels do not fit this MLX"


def test_on_a_mac_no_compiler_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    found = machine.facts()
    assert found["kernels"] == {"used": "no: they are for Linux"}
    assert found["metal"] == {"used": "no: MLX finds no Metal here"}


def test_doctor_compiles_only_with_build_and_prints_the_module(compiler: Compiler) -> None:
    log = compiler(0)
    waiting = kernels()
    assert waiting["used"] == machine.NOT_COMPILED
    assert "module" not in waiting
    assert not log.read_text()
    first, again = doctor("--build"), doctor("--build")
    assert first.stdout == again.stdout == f"{build.library()}\n"
    begun, *progress, took = first.stderr.splitlines()
    assert begun == "compiling the CPU kernels for this machine, once"
    assert all(line.startswith("compiling ") for line in progress)  # none unless the machine is slow
    assert took.startswith("compiled in ")
    assert again.stderr == "already compiled, for AVX2\n"
    assert cache_files() == ["lock", build.library().name]
    assert kernels()["used"] == "yes"
    assert json.loads(doctor("--build", "--json").stdout)["kernels"]["module"] == str(build.library())


def test_a_failed_compilation_is_an_error_with_its_cause() -> None:
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
