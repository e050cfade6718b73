"""`macllm doctor --kernels` without Metal, and with it (here the simulator)."""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from macllm.child import Parent
from macllm.cli import main
from macllm.doctor import decoding as doctor_decoding
from macllm.doctor import machine as doctor_machine
from macllm.doctor import subprocess as doctor_subprocess
from macllm.doctor.benchmark import WHOLE, CaseResult, Effort, PairTiming, run_case
from macllm.doctor.case import Case
from macllm.doctor.cases import cases
from macllm.doctor.decoding import Decoding
from macllm.doctor.kernels import Report, without_slow_kernels
from macllm.doctor.subprocess import trials
from macllm.ops.dispatch import using
from macllm.ops.metal import approved
from macllm.ops.metal.approved import Decisions
from tests.compiling import wait_for
from tests.simulator.intercept import Log, simulated
from tests.simulator.run import RunOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the simulator is Linux's")

FASTER = PairTiming(0.001, 0.0015, 1.5, 1.4, 1.6)
SLOWER = PairTiming(0.002, 0.0015, 0.75, 0.7, 0.8)
KINDS = ("moe", "qmv", "sample")


def some() -> list[Case]:
    """Small cases, marked as if they had the shapes of real models."""
    return [
        replace(
            next(case for case in cases() if case.op == op and case.dtype == mx.float16 and not case.timed), timed=True
        )
        for op in KINDS
    ]


def by_the_simulator(parent: Parent, numbers: list[int], effort: Effort) -> None:
    """Run kernels in the simulator with made-up times: qmv slower, the others faster."""
    for number in numbers:
        case = some()[number]
        with simulated(RunOptions(build="fast")):
            result = run_case(case, None)
        timing = SLOWER if case.op == "qmv" else FASTER
        parent.send(replace(result, timings=(timing, FASTER), traffic_bytes=1 << 20))


def crashing(parent: Parent, numbers: list[int], effort: Effort) -> None:
    for number in numbers:
        if some()[number].op == "qmv":
            os.write(2, f"libc++abi: terminating\n[METAL] out of bounds in {Path.home()}/kernel.metal\n".encode())
            os.abort()
        parent.send(result_of(some()[number]))


def never_ending(parent: Parent, numbers: list[int], effort: Effort) -> None:
    for number in numbers:
        if some()[number].op == "moe":
            stuck().touch()
            time.sleep(600)
        parent.send(result_of(some()[number]))


def stuck() -> Path:
    """A file that says that a case has begun which does not end."""
    return Path(os.environ["MACLLM_HOME"]) / "stuck"


def result_of(case: Case) -> CaseResult:
    return CaseResult(
        case.op, case.label, "float16", case.bucket, timed=True, relative_error=0.5, timings=(FASTER, FASTER)
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "macllm", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of saved decisions, with none saved."""
    path = tmp_path / "cache" / "metal.json"
    monkeypatch.setattr(approved, "_path", lambda: path)
    monkeypatch.delenv("MACLLM_METAL", raising=False)
    approved.load.cache_clear()
    yield path
    approved.load.cache_clear()


@pytest.fixture
def on_a_mac(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pretend Metal, with three cases, and a model that decodes faster with kernels."""
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: True)
    monkeypatch.setattr("macllm.doctor.cases.cases", some)
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_doctor_kernels:by_the_simulator")
    monkeypatch.setattr("macllm.evaluate.machine.read_bytes_per_second", lambda: 1e9)
    monkeypatch.setattr(doctor_decoding, "decoding", lambda progress: decoded())
    return kept


def decoded(timing: PairTiming = FASTER, *, other: int | None = None) -> Decoding:
    return Decoding("float16", 64, 1 / timing.seconds, 1 / timing.stock_seconds, timing, other)


def test_without_metal_the_report_says_so_and_names_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path / "cache" / "native"))
    done = run("--kernels")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No kernel was tested: Metal kernels need a Mac with Apple silicon." in done.stdout
    assert "python -m tests.simulator FILE" in done.stdout
    assert approved.kernels_hash() in done.stdout
    done = run("--kernels", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["lacking"] == "Metal kernels need a Mac with Apple silicon"
    assert facts["texts"]["kernels"] > 20
    assert not {"verdicts", "decisions", "decoding"} & set(facts)
    assert not (tmp_path / "cache").exists()


def test_kernels_and_build_cannot_be_combined() -> None:
    done = run("--kernels", "--build")
    assert done.returncode == 2
    assert "cannot be combined" in done.stderr


def test_on_a_mac_kernels_are_tested_and_decisions_saved(on_a_mac: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--kernels"]) == 0
    printed = capsys.readouterr()
    rows = [line.split(maxsplit=6) for line in printed.out.splitlines()]
    assert ["moe", "float16", "1.50x", "yes"] in [row[:2] + row[3:4] + row[5:6] for row in rows]
    assert ["qmv", "float16", "0.75x", "no"] in [row[:2] + row[3:4] + row[5:6] for row in rows]
    assert "  used      moe float16 1\n" in printed.out
    assert "  not used  qmv float16 1: 1 x 64 to 1, bias and residual: slower: 0.75 times MLX's speed" in printed.out
    assert "the tokens are the same" in printed.out
    assert printed.err.endswith(f"decisions saved in {on_a_mac}\n")
    decided = approved.load()
    assert decided is not None
    assert decided.decisions == {"moe float16 1": True, "qmv float16 1": False, "sample float16 to 1024": True}
    assert approved.decision("moe", mx.float16, 1)


def test_doctor_waits_for_a_trial_in_progress(on_a_mac: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with approved.alone(wait=False):
            held.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    threading.Timer(0.5, over.set).start()
    began = time.monotonic()
    assert main(["doctor", "--kernels"]) == 0
    assert time.monotonic() - began > 0.4
    assert capsys.readouterr().err.startswith("waiting for another test of kernels on this machine\n")
    assert on_a_mac.exists()
    holder.join()


def test_json_has_the_whole_report(on_a_mac: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--kernels", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lacking"] is None
    assert [result["op"] for result in facts["verdicts"]] == list(KINDS)
    assert all(result["right"] for result in facts["verdicts"])
    assert facts["verdicts"][0]["bytes_per_second"] == pytest.approx((1 << 20) / 0.001)
    assert facts["decisions"]["moe float16 1"] is True
    assert facts["reasons"].keys() == {"qmv float16 1"}
    assert facts["decoding"]["tokens_per_second"] == pytest.approx(1000)
    assert facts["decoding"]["first_other_token"] is None
    assert facts["machine"]["chip"] == approved.machine()["chip"]


def test_under_shader_validation_nothing_is_timed_or_saved(
    on_a_mac: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTL_SHADER_VALIDATION", "1")
    assert main(["doctor", "--kernels"]) == 0
    printed = capsys.readouterr().out
    failed = "0 of 3 cases failed. Nothing was timed and no decision was saved: Metal's shader validation is on"
    assert failed in printed
    assert not on_a_mac.exists()
    monkeypatch.setenv("MTL_SHADER_VALIDATION", "0")
    assert not doctor_subprocess.is_validated()


def test_an_unreadable_source_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "whole.metal").write_text("//: uint i = thread_position_in_grid.x;\n")
    (tmp_path / "broken.metal").write_bytes(b"//: \xff\n")
    monkeypatch.setattr("macllm.ops.metal.HERE", tmp_path)
    assert main(["doctor", "--kernels"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kernels", "1"] in rows
    assert ["unreadable", "broken"] in rows


def test_plain_doctor_lists_the_decisions(
    on_a_mac: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def metal() -> dict[str, Any]:
        assert main(["doctor", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["metal"]

    assert metal() == {"used": doctor_machine.NOT_TRIED}
    approved.add(Decisions({"moe float16 1": True}))
    approved.load.cache_clear()
    form = "combinations of operation, type and size"
    assert metal()["used"].startswith(f"for 1 of 1 {form}; all from quick tests; macllm doctor --kernels")
    approved.save(Decisions({"moe float16 1": True, "qmv float16 1": False}, {"qmv float16 1": "slower"}))
    found = metal()
    assert found["used"].startswith(f"for 1 of 2 {form}; macllm doctor --kernels")
    assert (found["serving"], found["not_serving"]) == (["moe float16 1"], {"qmv float16 1": "slower"})
    assert main(["doctor"]) == 0
    assert "    qmv float16 1: slower\n" in capsys.readouterr().out
    for value, used in (("1", "all, tested or not"), ("0", "no")):
        monkeypatch.setenv("MACLLM_METAL", value)
        assert metal() == {"used": f"{used}: MACLLM_METAL={value}"}
    monkeypatch.setenv("MACLLM_METAL", "")
    assert metal() == found
    monkeypatch.setenv("MACLLM_METAL", "no")
    assert metal() == found | {"ignored": "MACLLM_METAL=no: neither 0 nor 1"}


def test_a_kernel_that_crashes_its_process_is_not_used(
    on_a_mac: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_doctor_kernels:crashing")
    assert main(["doctor", "--kernels"]) == 0
    printed = capsys.readouterr()
    assert "its process crashed: [METAL] out of bounds in ~/kernel.metal" in printed.out
    assert "libc++abi" not in printed.err
    decided = approved.load()
    assert decided is not None
    assert decided.decisions == {"moe float16 1": True, "qmv float16 1": False, "sample float16 to 1024": True}


def test_after_a_timeout_the_ops_other_cases_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time begins when the case has, however slowly its process starts."""
    wait, path = doctor_subprocess.TrialProcess.next, stuck()

    def next_of(process: doctor_subprocess.TrialProcess, timeout_seconds: float) -> object:
        end = time.monotonic() + 120
        while not path.exists() and time.monotonic() < end:
            if arrived := wait(process, 0.02):
                return arrived
        path.unlink()
        return wait(process, timeout_seconds)

    monkeypatch.setattr(doctor_subprocess, "WAIT_SECONDS", 1.0)
    monkeypatch.setattr(doctor_subprocess.TrialProcess, "next", next_of)
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_doctor_kernels:never_ending")
    known = some()
    known.insert(1, replace(known[0], label="more of it"))
    found = trials([known[0], *known[2:], known[1]], WHOLE)
    assert [(result.op, result.error) for result in found] == [
        ("moe", "it did not end in 1 s"),
        ("qmv", None),
        ("sample", None),
    ]


def test_the_child_process_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Off a Mac MLX refuses to run a kernel; the result says so."""
    known = list(cases())
    (result,) = trials(known[:1], WHOLE)
    assert (result.op, result.is_correct) == (known[0].op, False)
    assert result.error == "RuntimeError: [metal_kernel] No Metal back-end."
    assert capfd.readouterr().out == ""


def test_an_interrupt_saves_nothing_and_leaves_no_process(
    on_a_mac: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_doctor_kernels:never_ending")
    path = stuck()

    def interrupt() -> None:
        wait_for(path.exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    assert main(["doctor", "--kernels"]) == 130
    assert time.monotonic() - began < 60
    assert capsys.readouterr().out == ""
    assert not on_a_mac.exists()
    assert not [thread for thread in threading.enumerate() if "messages of" in thread.name]


def test_kernels_that_slow_down_a_whole_model_are_not_used(
    on_a_mac: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_decoding, "decoding", lambda progress: decoded(SLOWER, other=7))
    assert main(["doctor", "--kernels"]) == 0
    printed = capsys.readouterr().out
    assert "the tokens are the same up to token 7" in printed
    assert (
        "not used  moe float16 1: faster alone, but a whole model with it is slower: 0.75 times MLX's speed" in printed
    )
    assert not approved.decision("moe", mx.float16, 1)
    others = Decisions(
        {"moe bfloat16 1": True, "flash_prefill float16 more": True, "lora float16 1": False}, {"lora float16 1": "x"}
    )
    assert without_slow_kernels(others, decoded(SLOWER)) == others
    assert without_slow_kernels(others, decoded(replace(SLOWER, highest=1.1))) == others


def test_a_report_has_no_user_names_and_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/jo")
    monkeypatch.setattr(getpass, "getuser", lambda: "jo")
    error = "open: /Users/jo/Library/x /private/tmp/jo/y /Users/joan/z jo: no such file"
    result = CaseResult("qmv", "odd", "float16", "1", timed=True, error=error)
    decided = Decisions({"qmv float16 1": False}, {"qmv float16 1": f"odd: {error}"})
    report = Report({"system": "macOS 26.1"}, {}, None, (result,), decided)
    for content in (report.text(), json.dumps(report.facts())):
        assert "open: ~/Library/x /private/tmp/user/y /Users/joan/z jo: no such file" in content
        assert "/Users/jo/" not in content


def test_a_table_without_timings_has_no_speed() -> None:
    result = CaseResult("qmv", "odd", "float16", "1", timed=False, relative_error=0.25)
    report = Report({"memory_bytes": 16e9}, {}, None, (result,), Decisions({}, {}))
    assert "  memory           16.0 GB\n" in report.text()
    assert ["qmv", "float16", "0.25", "-", "-", "-", "odd"] in [line.split() for line in report.text().splitlines()]
    assert "No kernel is used, so decoding was not measured." in report.text()


@pytest.mark.slow
def test_the_bundled_model_decodes_the_same_tokens_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()

    def both_once(ours: Callable[[], float], stock: Callable[[], float]) -> PairTiming:
        with simulated(RunOptions(build="fast")) as dispatched:
            ours()
        log.dispatches += dispatched.dispatches
        stock()
        return FASTER

    monkeypatch.setattr(doctor_decoding, "NEW_TOKENS", 3)
    monkeypatch.setattr(doctor_decoding, "_as_decided", lambda: using("metal"))
    monkeypatch.setattr("macllm.doctor.benchmark.time_pair", both_once)
    found = doctor_decoding.decoding()
    assert (found.dtype, found.new_tokens, found.first_other_token) == ("float32", 3, None)
    assert log.faults == []
    names = {name for name, _ in log.dispatches}
    assert {"qkv_post", "qmv", "kv_decode"} <= names
    assert "64 tokens" not in "\n".join(found.lines())
