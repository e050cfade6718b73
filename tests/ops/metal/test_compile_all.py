"""The script that compiles every kernel: its files and messages, with and without Apple's compiler."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from macllm.doctor.case import Case
from macllm.doctor.cases import cases
from macllm.ops.metal import HERE, kernel_source
from tests.ops.metal import compile_all
from tests.ops.metal.compile_all import main, texts

XCRUN = """#!/bin/sh
for argument; do case $argument in -std=*) version=$argument;; *.metal) file=$argument;; esac; done
echo "$@" >> {log}
[ "$version" != -std=metal4.0 ] || {{ echo "error: invalid value 'metal4.0'" >&2; exit 1; }}
! grep -q {bad} "$file" || {{ echo "$file:3: error: no such thing" >&2; exit 1; }}
"""


def of(*ops: str) -> list[Case]:
    return [case for case in cases() if case.op in ops and case.dtype == mx.float16 and not case.timed]


def test_a_dry_run_checks_each_source_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(of("moe", "lora"), [str(tmp_path / "texts"), "--dry"]) == 0
    files = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "texts").iterdir())
    assert set(files) == {"moe_gate_up", "moe_down_combine", "lora_down", "qmv"}
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"{len(files)} texts, 0 refused"
    assert all(line.startswith("dry ") and line.endswith(": passes") for line in told[:-1])


def test_no_kernel_is_run() -> None:
    (big,) = [case for case in cases() if case.op == "kv_decode" and case.size == 8192 and case.dtype == mx.float16]
    assert [kernel for kernel, _ in texts([big])] == ["kv_decode", "kv_combine"]


def test_a_source_that_metal_would_reject_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compile_all, "texts", lambda some: [("bad", "void f() { float x = 1.0; }\n")])
    monkeypatch.setattr("tests.simulator.front.there", lambda: False)
    assert main([], [str(tmp_path), "--dry"]) == 1
    assert "REFUSED\nline 1: a number without f or h is a double" in capsys.readouterr().out
    monkeypatch.setattr(compile_all, "texts", lambda some: [])
    assert main([], [str(tmp_path), "--dry"]) == 1, "nothing to compile is no success"


@pytest.mark.parametrize(("bad", "code"), [("nowhere_to_be_found", 0), ("custom_kernel_lora_down", 1)])
def test_apples_compiler_gets_every_source_in_every_version(
    bad: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log, program = tmp_path / "log", tmp_path / "bin" / "xcrun"
    program.parent.mkdir()
    program.write_text(XCRUN.format(log=log, bad=bad))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert main(of("lora"), [str(tmp_path / "texts")]) == code
    told = capsys.readouterr().out
    assert "metal3.1: compiles\nmetal3.2: compiles\nmetal4.0: is not known here: error: invalid value" in told
    assert told.count("REFUSED\n") == 2 * code
    assert ("lora_down-" in told and "error: no such thing" in told) is bool(code)
    files = list((tmp_path / "texts").glob("*-*.metal"))
    calls = [line for line in log.read_text().splitlines() if "empty.metal" not in line]
    assert len(calls) == 2 * len(files)
    assert all("-sdk macosx metal -c -Werror -fno-fast-math -std=metal3." in call for call in calls)
    assert all((Path(call.split("-isystem ")[1].split()[0]) / "mlx/backend").is_dir() for call in calls)
    assert all(path.read_text().startswith('#include "mlx/backend/metal/kernels/utils.h"\n') for path in files)


@pytest.mark.slow
def test_every_kernel_is_checked_and_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(cases(), [str(tmp_path), "--dry"]) == 0, capsys.readouterr().out
    kernels = {path.stem for path in HERE.rglob("*.metal") if kernel_source(path.stem).source}
    assert {path.name.rpartition("-")[0] for path in tmp_path.iterdir()} == kernels
