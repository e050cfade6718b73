"""The quick trial of Metal kernels: its cases, decisions, interruptions and resumption."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import macllm
from macllm.chat.options import TRIAL
from macllm.child import Exit, Parent
from macllm.doctor import quick
from macllm.doctor import subprocess as doctor_subprocess
from macllm.doctor.benchmark import QUICK, CaseResult, Effort, PairTiming, run_case
from macllm.doctor.case import Case
from macllm.doctor.cases import cases
from macllm.doctor.quick import BUDGET_SECONDS, CASE_SECONDS, QuickTrial
from macllm.generation.contract import MemoryUse, Status
from macllm.generation.engines.process import ProcessEngine
from macllm.generation.request import Request, SamplingParams
from macllm.nn import quantize
from macllm.ops import dispatch, fused_linear
from macllm.ops.metal import approved
from macllm.ops.metal.approved import Decisions
from macllm.ops.weights import PackedWeight
from tests.compiling import wait_for
from tests.simulator.intercept import simulated
from tests.simulator.run import RunOptions

FASTER = PairTiming(0.001, 0.0015, 1.5, 1.4, 1.6)
SLOWER = PairTiming(0.002, 0.0015, 0.75, 0.7, 0.8)
BASE = next(cases())


def case(op: str, size: int, *, timed: bool, label: str = "") -> Case:
    return replace(BASE, op=op, dtype=mx.float16, size=size, timed=timed, label=label or f"{op} of {size}")


KNOWN = [
    case("qmv", 1, timed=False, label="odd"),
    case("qmv", 1, timed=True),
    case("qmv", 4, timed=True),
    case("moe", 1, timed=False, label="few"),
    case("moe", 1, timed=True),
    case("sample", 100, timed=False),
]
QMV, FOUR, MOE, SAMPLE = "qmv float16 1", "qmv float16 to 16", "moe float16 1", "sample float16 to 1024"


def result(number: int, *, relative_error: float = 0.5, timing: PairTiming = FASTER) -> CaseResult:
    one = KNOWN[number]
    return CaseResult(
        one.op, one.label, "float16", one.bucket, one.timed, relative_error, (timing,) if one.timed else ()
    )


@dataclass
class Lab:
    """A fake clock, and processes that take a second per case unless `seconds` says otherwise."""

    seconds: dict[int, float] = field(default_factory=dict)
    answers: dict[int, CaseResult | Exit] = field(default_factory=dict)
    stops_at: int | None = None  # the case during which a request arrives
    now: float = 0.0
    started: list[list[int]] = field(default_factory=list)
    ended: int = 0
    statuses: list[Status] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)

    def start(self, numbers: Sequence[int], effort: Effort) -> Process:
        assert effort == QUICK
        self.started.append(list(numbers))
        return Process(self, list(numbers))

    def trial(self) -> QuickTrial:
        return QuickTrial(self.statuses.append, start=self.start, clock=lambda: self.now)

    def run_case(self, trial: QuickTrial | None = None) -> QuickTrial:
        """A trial that has run to its end."""
        trial = trial or self.trial()
        trial.resume()
        assert trial.wait(10)
        return trial


@dataclass
class Process:
    lab: Lab
    numbers: list[int]
    interrupted: threading.Event = field(default_factory=threading.Event)

    def next(self, timeout_seconds: float) -> CaseResult | Exit | None:
        number = self.numbers.pop(0)
        if number == self.lab.stops_at:
            self.lab.reached.set()
            assert self.interrupted.wait(10)
            self.lab.now += 1
            return None
        took = self.lab.seconds.get(number, 1.0)
        self.lab.now += min(took, timeout_seconds)
        return None if took > timeout_seconds else self.lab.answers.get(number) or result(number)

    def interrupt(self) -> None:
        self.interrupted.set()

    def end(self) -> None:
        self.lab.ended += 1


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of saved decisions, with none saved; `KNOWN` are the only cases."""
    path = tmp_path / "cache" / "metal.json"
    monkeypatch.setattr(approved, "_path", lambda: path)
    monkeypatch.setattr(quick, "cases", lambda: iter(KNOWN))
    monkeypatch.delenv("MACLLM_METAL", raising=False)
    approved.load.cache_clear()
    yield path
    approved.load.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the model requested these keys, the first most often."""

    def ask(*keys: str) -> None:
        monkeypatch.setattr(dispatch, "undecided", Counter({key: 100 - n for n, key in enumerate(keys)}))

    return ask


def decided() -> dict[str, bool]:
    approved.load.cache_clear()
    found = approved.load()
    return {} if found is None else dict(found.decisions)


def test_only_requested_keys_are_tested_the_most_requested_first(asked: Callable[..., None]) -> None:
    asked(MOE, QMV)
    lab = Lab()
    lab.run_case()
    assert lab.started == [[3, 4, 0, 1]], "small cases come before timed ones; four rows were not requested"
    assert decided() == {MOE: True, QMV: True}
    assert lab.statuses == [Status("trying Metal kernels", transient=True), Status("", transient=True)]
    assert lab.ended == 1


def test_without_a_request_nothing_is_started(asked: Callable[..., None], kept: Path) -> None:
    """As on Linux, where no key is ever undecided."""
    asked()
    lab = Lab()
    lab.run_case()
    assert (lab.started, lab.statuses, kept.parent.exists()) == ([], [], False)


def test_keys_without_a_timed_case_are_skipped(asked: Callable[..., None]) -> None:
    asked(SAMPLE, "qmv float16 to 1024", "no_such_op float16 1", "qmv bfloat16 1")
    lab = Lab()
    lab.run_case()
    assert (lab.started, decided()) == ([], {})


def test_a_slower_kernel_is_rejected_and_the_reason_saved(asked: Callable[..., None]) -> None:
    asked(QMV, MOE)
    Lab(answers={1: result(1, timing=SLOWER)}).run_case()
    assert decided() == {QMV: False, MOE: True}
    found = approved.load()
    assert found is not None
    assert found.reasons == {QMV: "qmv of 1: slower: 0.75 times MLX's speed (0.70 to 0.80)"}
    assert found.quick == {QMV, MOE}


def test_a_wrong_kernel_is_rejected_for_all_sizes(asked: Callable[..., None]) -> None:
    asked(QMV, FOUR, MOE)
    lab = Lab(answers={2: result(2, relative_error=3.0)})
    lab.run_case()
    assert decided() == {QMV: False, FOUR: False, MOE: True}
    asked(QMV, FOUR, MOE)
    approved.save(Decisions())
    lab = Lab(answers={0: result(0, relative_error=float("inf"))})
    lab.run_case()
    assert decided() == {QMV: False, FOUR: False, MOE: True}
    assert lab.started == [[0, 1, 2, 3, 4], [3, 4]], "the rest of the op is not tried"


def test_a_wrong_kernel_revokes_the_approval_of_an_earlier_trial(asked: Callable[..., None]) -> None:
    asked(QMV, MOE)
    Lab().run_case()
    assert decided() == {QMV: True, MOE: True}
    asked(FOUR)
    Lab(answers={2: result(2, timing=SLOWER)}).run_case()
    assert decided() == {QMV: True, MOE: True, FOUR: False}, "slower for some sizes is not wrong"
    approved.save(Decisions())
    asked(QMV, MOE)
    Lab().run_case()
    asked(FOUR)
    Lab(answers={2: result(2, relative_error=2.0)}).run_case()
    assert decided() == {QMV: False, MOE: True, FOUR: False}


def test_no_trial_runs_beside_a_model_that_fills_the_memory(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(MOE)
    lab = Lab()
    monkeypatch.setattr(quick, "memory_use", lambda: MemoryUse(15 << 30, 15 << 30, 16 << 30))
    trial = lab.run_case()
    assert lab.started == []
    monkeypatch.setattr(quick, "memory_use", lambda: MemoryUse(9 << 30, 15 << 30, 16 << 30))
    lab.run_case(trial)
    assert decided() == {MOE: True}


def test_a_crash_rejects_the_kernel_and_the_trial_continues(asked: Callable[..., None], tmp_path: Path) -> None:
    asked(QMV, MOE)
    (tmp_path / "log").write_text("libc++abi: terminating\nout of bounds\n")
    lab = Lab(answers={0: Exit(-6, False, tmp_path / "log")})
    lab.run_case()
    assert lab.started == [[0, 1, 3, 4], [3, 4]]
    assert decided() == {QMV: False, MOE: True}
    found = approved.load()
    assert found is not None
    assert found.reasons == {QMV: "odd: its process crashed: out of bounds"}


def test_a_case_that_times_out_rejects_its_kernel(asked: Callable[..., None]) -> None:
    asked(QMV, MOE)
    lab = Lab(seconds={1: CASE_SECONDS + 1})
    lab.run_case()
    assert decided() == {QMV: False, MOE: True}
    assert lab.now == CASE_SECONDS + 3
    asked("sample float16 1", QMV, MOE)
    approved.save(Decisions())
    lab = Lab(seconds={0: 2 * CASE_SECONDS - 1})
    lab.run_case()
    assert decided() == {QMV: True, MOE: True}, "the first case waits for MLX"


def test_a_spent_budget_ends_an_engines_trials_even_within_a_case(asked: Callable[..., None]) -> None:
    asked(QMV, MOE, FOUR)
    lab = Lab(seconds=dict.fromkeys(range(5), 9.0))
    trial = lab.run_case()
    assert lab.now == BUDGET_SECONDS
    assert decided() == {QMV: True}, "moe was not decided in time"
    assert lab.ended == len(lab.started) == 1
    lab.run_case(trial)
    assert (lab.now, len(lab.started)) == (BUDGET_SECONDS, 1)
    lab = Lab()
    lab.run_case()
    assert lab.started == [[3, 4, 0, 2]], "another engine tries what is left"
    assert decided() == {QMV: True, MOE: True, FOUR: True}


def test_a_request_stops_the_trial_at_once_and_it_resumes_there(asked: Callable[..., None]) -> None:
    asked(MOE, QMV)
    lab = Lab(stops_at=1)
    trial = lab.trial()
    trial.resume()
    assert lab.reached.wait(10)
    began = time.monotonic()
    trial.pause()
    assert time.monotonic() - began < 1
    assert trial.wait(10)
    assert lab.ended == 1
    assert lab.statuses[-1] == Status("", transient=True)
    assert decided() == {MOE: True}
    lab.stops_at = None
    lab.run_case(trial)
    assert lab.started == [[3, 4, 0, 1], [1]]
    assert decided() == {MOE: True, QMV: True}
    lab.run_case(trial)
    assert len(lab.started) == 2, "nothing is left"


def test_time_before_a_pause_counts_towards_the_budget(asked: Callable[..., None]) -> None:
    asked(QMV)
    lab = Lab(stops_at=0, seconds={1: 9.0})
    trial = lab.trial()
    for _ in range(int(BUDGET_SECONDS) - 2):
        lab.reached.clear()
        trial.resume()
        assert lab.reached.wait(10)
        trial.pause()
        assert trial.wait(10)
    lab.stops_at = None
    lab.run_case(trial)
    assert (lab.now, decided()) == (BUDGET_SECONDS, {})


def test_decisions_apply_from_the_next_pause_on(asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the middle of a completion: the model's thread pauses the trial before each one."""
    asked(MOE)
    trial = Lab().run_case()
    assert approved.decision("moe", mx.float16, 1) is None
    trial.pause()
    assert approved.decision("moe", mx.float16, 1) is True


def test_decisions_of_the_whole_test_have_precedence(asked: Callable[..., None]) -> None:
    asked(QMV, MOE)
    approved.save(Decisions({QMV: False}, {QMV: "slower"}))
    lab = Lab()
    trial = lab.run_case()
    assert lab.started == [[3, 4]]
    assert decided() == {QMV: False, MOE: True}
    approved.save(Decisions({QMV: True, MOE: False}, {MOE: "slower"}))
    lab.run_case(trial)
    assert decided() == {QMV: True, MOE: False}


def test_another_build_of_the_system_is_tested_again(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(MOE)
    Lab().run_case()
    lab = Lab()
    lab.run_case()
    assert lab.started == []
    here = approved.machine()
    monkeypatch.setattr(approved, "machine", lambda: here | {"system": "macOS 26.2 25C56"})
    lab = Lab(answers={4: result(4, timing=SLOWER)})
    lab.run_case()
    assert lab.started == [[3, 4]]
    assert decided() == {MOE: False}


def test_nothing_is_timed_while_another_process_times(asked: Callable[..., None]) -> None:
    asked(MOE)
    lab = Lab()
    with approved.alone(wait=False):
        trial = lab.run_case()
    assert (lab.started, lab.statuses) == ([], [])
    lab.run_case(trial)
    assert decided() == {MOE: True}


def test_a_trial_that_cannot_save_decisions_is_not_repeated(
    asked: Callable[..., None], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(MOE)
    monkeypatch.setattr(approved, "_path", lambda: Path("/proc/macllm/metal.json"))
    lab = Lab()
    trial = lab.run_case()
    assert lab.started == []
    monkeypatch.setattr(approved, "_path", lambda: kept)
    lab.run_case(trial)
    assert lab.started == []


def test_under_shader_validation_nothing_is_tested(asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked(MOE)
    monkeypatch.setenv("MTL_SHADER_VALIDATION", "1")
    lab = Lab()
    lab.run_case()
    assert lab.started == []


def few() -> list[Case]:
    """Two real cases, one of them marked as if it had the shape of a real model."""
    one = next(one for one in cases() if (one.op, one.dtype, one.size, one.timed) == ("moe", mx.float16, 1, False))
    return [one, replace(one, timed=True)]


def by_the_simulator(parent: Parent, numbers: list[int], effort: Effort) -> None:
    """Run kernels in the simulator, and report all as faster, since its times mean nothing."""
    for number in numbers:
        with simulated(RunOptions(build="fast")):
            found = run_case(few()[number], None)
        parent.send(replace(found, timings=(FASTER,) * few()[number].timed))


def hanging(parent: Parent, numbers: list[int], effort: Effort) -> None:
    threading.Thread(target=doctor_subprocess._end_with, args=(parent,), daemon=True).start()
    os.write(2, f"{os.getpid()}\n".encode())
    time.sleep(600)


def test_real_kernels_run_in_a_real_process(asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "cases", few)
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_quick:by_the_simulator")
    asked(MOE)
    trial = QuickTrial()
    trial.resume()
    assert trial.wait(60)
    assert decided() == {MOE: True}


def test_a_request_leaves_no_process_behind(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    monkeypatch.setattr(doctor_subprocess, "TARGET", "test_quick:hanging")
    asked(MOE)
    trial = QuickTrial()
    trial.resume()
    wait_for(lambda: any(log.read_text().endswith("\n") for log in own_home.rglob("trial-*.log")))
    (log,) = own_home.rglob("trial-*.log")
    pid = int(log.read_text())
    began = time.monotonic()
    trial.pause()
    assert time.monotonic() - began < 0.5
    assert trial.wait(10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert decided() == {}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a GPU; arrays are still made on the CPU."""
    here = approved.machine()
    monkeypatch.setattr(approved, "machine", lambda: here)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(dispatch, "undecided", Counter())


@pytest.mark.usefixtures("gpu")
def test_an_approved_kernel_is_used_from_the_next_completion_on() -> None:
    x = mx.random.normal((1, 64)).astype(mx.float16)
    matrix = mx.random.normal((32, 64)).astype(mx.float16)
    words, scales, biases = mx.quantize(matrix, group_size=64, bits=4)
    packed = PackedWeight(words, scales, biases, 64, 4, "affine")
    assert fused_linear.supports(x)
    assert fused_linear.linear(x, packed, None, None) is None
    assert dispatch.undecided == {QMV: 1}
    trial = Lab().run_case()
    assert fused_linear.linear(x, packed, None, None) is None
    trial.pause()
    with simulated(RunOptions(build="fast")) as log:
        y = fused_linear.linear(x, packed, None, None)
        assert y is not None
        exact = packed._replace(scales=scales.astype(mx.float32), biases=biases.astype(mx.float32))
        right = x.astype(mx.float32) @ exact.dequantized().T
        assert mx.allclose(y, right, rtol=1e-3, atol=1e-3).item()
    assert [name for name, _ in log.dispatches] == ["qmv"]
    approved.add(Decisions({f"{op} float16 1": False for op in ("qmv", "qmv_gated", "qmv_three", "lora", "moe")}))
    approved.load.cache_clear()
    assert not fused_linear.supports(x)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_model_requests_its_keys_and_gives_the_same_answer_meanwhile(
    bits: int | None, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = macllm.load()
    model.set_dtype(mx.bfloat16)
    if bits:
        quantize.apply(model, bits=bits, group_size=64)

    def answer() -> str:
        return macllm.generate(model, tokenizer, "Who are you?", raw=True, max_tokens=4, temperature=0.0).text

    with dispatch.using("stock"):
        stock = answer()
    request.getfixturevalue("gpu")
    assert answer() == stock
    asked = {key.removesuffix(f"bfloat16 {key.split(maxsplit=2)[2]}").strip() for key in dispatch.undecided}
    assert asked == {"qkv_post", "kv_decode"} | ({"qmv", "qmv_gated", "qmv_three"} if bits else set())


def all_faster(parent: Parent, numbers: list[int], effort: Effort) -> None:
    known = list(cases())
    for n in numbers:
        one = known[n]
        timings = (FASTER,) if one.timed else ()
        parent.send(CaseResult(one.op, one.label, "float16", one.bucket, one.timed, 0.5, timings))


def load_on_a_mac(name: str, adapter: str | None = None) -> tuple[Any, Any]:
    """A model that requests a kernel, in a process with a pretended GPU."""

    from tests.generation import generate_fakes

    class Model(generate_fakes.FakeModel):
        def hidden(self, tokens: mx.array, cache: Any = None) -> mx.array:
            dispatch.metal("moe", mx.float16, 1)
            return super().hidden(tokens, cache)

    here = approved.machine()
    approved.machine = lambda: here
    mx.metal.is_available = lambda: True
    mx.default_device = lambda: mx.gpu
    doctor_subprocess.TARGET = f"test_quick:{name}"
    return Model(context_length=4096), generate_fakes.FakeTokenizer()


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], ProcessEngine]]:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "generation")
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path / "cache" / "native"))
    monkeypatch.setenv("MACLLM_NATIVE", "0")
    engines: list[ProcessEngine] = []

    def make(name: str) -> ProcessEngine:
        engines.append(ProcessEngine(name, loader="test_quick:load_on_a_mac", trial=TRIAL, on_status=STATUSES.put))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


STATUSES: queue.SimpleQueue[Status] = queue.SimpleQueue()


def ask(engine: ProcessEngine) -> float:
    """Seconds of an answer."""
    began = time.monotonic()
    request = Request(prompt=(1, 2), max_tokens=2, sampling=SamplingParams(temperature=0.0))
    assert len([*engine.submit(request)]) >= 2
    return time.monotonic() - began


def test_an_engines_process_tests_the_kernels_that_its_model_requested(
    engine_of: Callable[[str], ProcessEngine], kept: Path
) -> None:
    engine = engine_of("all_faster")
    ask(engine)
    assert STATUSES.get(timeout=30) == Status("trying Metal kernels", transient=True)
    assert STATUSES.get(timeout=30) == Status("", transient=True)
    assert json.loads(kept.read_text())["decisions"] == {MOE: True}
    ask(engine)
    with pytest.raises(queue.Empty):
        STATUSES.get(timeout=1.5)


def test_an_engine_answers_at_once_and_leaves_no_trial_process(
    engine_of: Callable[[str], ProcessEngine], kept: Path, own_home: Path
) -> None:
    def trials() -> list[int]:
        return [int(log.read_text()) for log in own_home.rglob("trial-*.log") if log.read_text().endswith("\n")]

    engine = engine_of("hanging")
    ask(engine)
    wait_for(trials)
    (first,) = trials()
    assert ask(engine) < 5
    wait_for(lambda: not Path(f"/proc/{first}").exists())
    wait_for(lambda: len(trials()) == 2)
    engine.close()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in trials()))
    assert not kept.exists()
