"""Kernel cases of the doctor: correct and wrong kernels, speed beyond noise, saved decisions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from macllm.doctor.benchmark import CaseResult, PairTiming, decisions, run_case, trials
from macllm.doctor.case import Arrays, Case
from macllm.doctor.cases import cases
from macllm.ops import dispatch, metal
from macllm.ops.metal import DTYPES, approved
from macllm.ops.metal.approved import Decisions
from tests.simulator.intercept import simulated
from tests.simulator.run import RunOptions

FAST = RunOptions(build="fast")
OPS = (
    "qkv_post",
    "qkv_post_packed",
    "kv_decode",
    "kv_decode_packed",
    "flash_prefill",
    "flash_prefill_masked",
    "flash_prefill_packed",
    "flash_prefill_packed_masked",
    "flash_backward",
    "flash_backward_masked",
    "qmv",
    "qmv_gated",
    "qmv_three",
    "lora",
    "moe",
    "sample",
    "linear_attention",
)
ALL = list(cases())
SMALL = [case for case in ALL if not case.timed]


def first(op: str, dtype: mx.Dtype = mx.bfloat16) -> Case:
    return next(case for case in SMALL if case.op == op and case.dtype == dtype)


def simulate(case: Case) -> CaseResult:
    with simulated(FAST) as log:
        result = run_case(case, None)
    assert log.faults == []
    return result


def is_right(case: Case) -> None:
    result = simulate(case)
    assert result.rejection is None
    assert result.relative_error is not None
    assert result.is_correct
    assert case.error_of(case.stock) < 8, "MLX's operations compute something else"


@pytest.mark.parametrize("op", OPS)
def test_a_kernel_is_correct_in_the_simulator(op: str) -> None:
    is_right(first(op))


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.dtype} {case.op} {case.label}")
def test_every_small_case_is_correct_in_the_simulator(case: Case) -> None:
    is_right(case)


def test_every_op_has_a_case_of_every_type_and_timed_cases_of_its_buckets() -> None:
    assert {(case.op, case.dtype) for case in SMALL} == {(op, dtype) for op in OPS for dtype in DTYPES}
    timed: dict[str, set[str]] = {}
    for case in ALL:
        if case.timed:
            timed.setdefault(case.op, set()).add(case.bucket)
    assert {op: sorted(buckets) for op, buckets in timed.items()} == {
        "qkv_post": ["1", "more", "to 1024", "to 16"],
        "qkv_post_packed": ["1", "more", "to 1024", "to 16"],
        "kv_decode": ["more", "to 1024", "to 16"],
        "kv_decode_packed": ["more", "to 1024", "to 16"],
        "flash_prefill": ["more", "to 1024"],
        "flash_prefill_masked": ["more", "to 1024"],
        "flash_prefill_packed": ["more", "to 1024"],
        "flash_prefill_packed_masked": ["more", "to 1024"],
        "flash_backward": ["more", "to 1024"],
        "flash_backward_masked": ["more", "to 1024"],
        "qmv": ["1", "to 16"],
        "qmv_gated": ["1", "to 16"],
        "qmv_three": ["1", "to 16"],
        "lora": ["1", "to 16"],
        "moe": ["1", "to 16"],
        "sample": ["more"],
        "linear_attention": ["1", "more", "to 1024"],
    }


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Replace a text in a kernel's source."""
    folder = tmp_path / "kernels"
    shutil.copytree(metal.HERE, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(metal, "HERE", folder)
    metal.kernel_source.cache_clear()

    def spoil(kernel: str, old: str, new: str) -> None:
        (path,) = folder.rglob(f"{kernel}.metal")
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    yield spoil  # type: ignore[misc]
    metal.kernel_source.cache_clear()


PRODUCT = "if (BIASED) y += float(bias[column]);"
BUGS = {
    "a missing bias": ("", r"the error is \d.* times the tolerance"),
    "not numbers": ("y = y / 0.0f * 0.0f;", "results are not numbers"),
    "a source that does not compile": (f"{PRODUCT} y += missing;", "CompileError: .*error: .*missing"),
}


@pytest.mark.parametrize(("text", "reason"), BUGS.values(), ids=BUGS)
def test_a_wrong_kernel_is_rejected_with_the_reason(
    text: str, reason: str, spoiled: Callable[[str, str, str], None]
) -> None:
    spoiled("qmv", PRODUCT, text)
    case = first("qmv")
    result = simulate(case)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.rejection)
    assert not result.is_correct
    assert result.timings == ()
    found = decisions([result, faster("qmv"), faster("lora")])
    assert found.decisions == {"qmv bfloat16 1": False, "lora bfloat16 1": True}
    assert found.reasons == {"qmv bfloat16 1": f"{case.label}: {result.rejection}"}
    assert simulate(first("moe")).is_correct


def test_every_exception_but_an_interrupt_becomes_a_result() -> None:
    def refuse(error: BaseException) -> Callable[[metal.KernelCall], list[mx.array]]:
        def execute(call: metal.KernelCall) -> list[mx.array]:
            raise error

        return execute

    with metal.executed_by(refuse(RuntimeError("[metal_kernel] 1 warning\nprogram_source:3:1: error: no such word\n"))):
        assert run_case(first("moe"), None).rejection == "RuntimeError: program_source:3:1: error: no such word"
    with metal.executed_by(refuse(KeyError())):
        assert run_case(first("moe"), None).rejection == "KeyError"
    with metal.executed_by(refuse(KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
        run_case(first("moe"), None)


class Bench:
    """A fake case and clock, with given seconds for each dispatch of the kernel and of MLX."""

    def __init__(self, ours: list[float], stock: list[float]) -> None:
        self.now, self.asked, self.waiting, self.done = 0.0, 0, 0.0, ""
        self.ours, self.stock = ours, stock

    def clock(self) -> float:
        """Every second call ends a timing, so that the dispatches since have run."""
        self.asked += 1
        if self.asked % 2 == 0:
            self.now, self.waiting = self.now + self.waiting, 0.0
        return self.now

    def run(self, kind: str, seconds: list[float]) -> Callable[[Arrays], list[mx.array]]:
        def run(given: Arrays) -> list[mx.array]:
            self.waiting += seconds[self.done.count(kind) % len(seconds)]
            self.done += kind
            return [given["x"] + 1]

        return run

    def case(self) -> Case:
        ours, stock = self.run("A", self.ours), self.run("B", self.stock)
        given = {"x": mx.zeros(1 << 20)}
        return Case(
            "qmv",
            "made up",
            mx.float32,
            1,
            lambda seed: given,
            ours,
            lambda given: [given["x"] + 1],
            stock,
            lambda given, results: {"x": results[0]},
            timed=True,
        )


def timed(ours: list[float], stock: list[float]) -> tuple[CaseResult, Bench]:
    bench = Bench(ours, stock)
    return run_case(bench.case(), bench.clock), bench


def test_a_faster_kernel_is_used_and_its_traffic_reported() -> None:
    result, bench = timed([0.01], [0.02])
    assert result.rejection is None
    assert [round(timing.speedup, 6) for timing in result.timings] == [2.0, 2.0]
    assert result.traffic_bytes == 2 * 4 << 20
    assert result.bytes_per_second == pytest.approx((8 << 20) / 0.01)
    assert decisions([result]).decisions == {"qmv float32 1": True}
    runs = [(kind, len(list(some))) for kind, some in _runs(bench.done)]
    turn = next(count for kind, count in runs[4:] if kind == "B") // 2
    assert f"{'A' * turn}{'B' * 2 * turn}{'A' * turn}" in bench.done
    assert turn == 4


def test_traffic_leaves_out_experts_that_are_not_chosen() -> None:
    case = next(case for case in ALL if case.op == "moe" and case.timed)
    given = case.make_inputs(0)
    words = sum(given[f"{name}_words"].nbytes for name in ("gate", "up", "down"))
    packed = words + words // 4  # 4 bit in groups of 64, whose scale and bias have 32
    with metal.executed_by(lambda call: [mx.zeros(shape, dtype) for shape, dtype in call.outputs.values()]):
        assert packed * 8 / 16 < case.traffic_bytes() < 1.01 * packed * 8 / 16


def _runs(text: str) -> list[tuple[str, str]]:
    from itertools import groupby

    return [(kind, "".join(some)) for kind, some in groupby(text)]


def test_many_short_dispatches_are_timed_as_one() -> None:
    _, bench = timed([0.00001], [0.00001])
    assert max(len(some) for _, some in _runs(bench.done)) == 2 * 256


@pytest.mark.parametrize(
    ("ours", "stock", "why"),
    [
        ([0.01], [0.008], "slower: 0.80 times MLX's speed (0.80 to 0.80)"),
        ([0.01], [0.0102], "not faster by 3 %: 1.02 times MLX's speed (1.02 to 1.02)"),
    ],
    ids=["slower", "too little"],
)
def test_a_kernel_that_is_not_faster_is_not_used(ours: list[float], stock: list[float], why: str) -> None:
    result, _ = timed(ours, stock)
    assert result.rejection == why
    assert decisions([result]).decisions == {"qmv float32 1": False}


def test_a_kernel_that_is_not_faster_beyond_noise_is_not_used() -> None:
    result, _ = timed([0.001] * 700 + [0.003] * 300, [0.002])  # twice as fast most of the time
    assert max(timing.speedup for timing in result.timings) > 1.5
    assert result.rejection is not None
    assert result.rejection.startswith("no difference beyond noise: ")
    assert decisions([result]).decisions == {"qmv float32 1": False}


def test_one_disturbed_turn_does_not_count() -> None:
    result, bench = timed([0.01], [0.02])
    at = bench.done.rindex("A") - bench.done.count("B")
    result, _ = timed([*[0.01] * (at - 1), 1.0], [0.02])
    assert result.rejection is None
    assert result.timings[1].lowest == pytest.approx(2)


def faster(op: str, *, speedup: float = 1.5, bucket: str = "1") -> CaseResult:
    timing = PairTiming(0.01, 0.01 * speedup, speedup, speedup - 0.01, speedup + 0.01)
    return CaseResult(op, "real", "bfloat16", bucket, timed=True, relative_error=0.5, timings=(timing, timing))


def wrong(op: str) -> CaseResult:
    return CaseResult(op, "odd", "bfloat16", "to 16", timed=False, relative_error=float("inf"))


def test_a_slow_case_rejects_its_bucket_and_a_wrong_case_all_buckets() -> None:
    right = CaseResult("qmv", "odd", "bfloat16", "to 16", timed=False, relative_error=1.0)
    some = [right, faster("qmv"), faster("qmv", speedup=0.9, bucket="to 16")]
    assert decisions(some).decisions == {"qmv bfloat16 1": True, "qmv bfloat16 to 16": False}
    assert decisions([*some, wrong("qmv")]).decisions == {"qmv bfloat16 1": False, "qmv bfloat16 to 16": False}
    assert decisions([right]) == Decisions()
    both = [faster("qmv"), faster("qmv", speedup=1.0)]
    assert decisions(both).decisions == decisions(both[::-1]).decisions == {"qmv bfloat16 1": False}


def test_facts_are_json_without_infinite_numbers() -> None:
    facts = json.loads(json.dumps([wrong("moe").facts(), faster("moe").facts()], allow_nan=False))
    assert facts[0]["apart"] is None
    assert facts[0]["objection"] == "results are not numbers"
    assert facts[1]["timings"][0]["speedup"] == 1.5


def test_trials_run_all_given_cases() -> None:
    with simulated(FAST):
        assert [result.op for result in trials([first("qmv"), first("moe")], clock=None)] == ["qmv", "moe"]


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of saved decisions, with none saved."""
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", str(tmp_path / "cache" / "native"))
    monkeypatch.delenv("MACLLM_METAL", raising=False)
    approved.load.cache_clear()
    yield tmp_path / "cache" / "metal.json"  # type: ignore[misc]
    approved.load.cache_clear()


def test_decisions_are_saved_by_op_type_and_bucket(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert approved.load() is None
    assert not approved.decision("qmv", mx.float16, 1)
    decided = Decisions({"qmv float16 1": True, "qmv float16 to 16": False}, {"qmv float16 to 16": "slower"})
    assert approved.save(decided) == unknown
    assert approved.load() == decided
    assert approved.decision("qmv", mx.float16, 1)
    assert not approved.decision("qmv", mx.float16, 2)
    assert not approved.decision("qmv", mx.bfloat16, 1)
    assert not approved.decision("moe", mx.float16, 1)
    assert [path.name for path in unknown.parent.iterdir()] == ["metal.json"]
    for asked, answer in (("0", False), ("1", True)):
        monkeypatch.setenv("MACLLM_METAL", asked)
        assert approved.decision("qmv", mx.float16, 1) is answer
        assert approved.decision("moe", mx.float16, 1) is answer


def test_dispatch_follows_decisions_on_a_gpu_only(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approved.save(Decisions({"qmv float16 1": True, "qmv float16 to 16": False}))
    assert not dispatch.metal("qmv", mx.float16, 1), "there is no GPU"
    here = approved.machine()
    monkeypatch.setattr(approved, "machine", lambda: here)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert dispatch.metal("qmv", mx.float16, 1)
    assert not dispatch.metal("qmv", mx.float16, 4)
    assert not dispatch.metal("qmv", mx.bfloat16, 1)
    with approved.override(Decisions({"qmv float16 to 16": True})):
        assert dispatch.metal("qmv", mx.float16, 4)
        assert not dispatch.metal("qmv", mx.float16, 1)
    with dispatch.using("stock"):
        assert not dispatch.metal("qmv", mx.float16, 1)
    with dispatch.using("metal"):
        assert dispatch.metal("qmv", mx.float16, 4)


def test_undecided_requests_are_counted_on_a_gpu(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "undecided", Counter())
    assert not dispatch.metal("qmv", mx.float16, 1)
    assert not dispatch.metal_possible("qmv", mx.float16, 1), "there is no GPU"
    assert not dispatch.undecided
    approved.save(Decisions({"qmv float16 1": True, "moe float16 1": False}))
    here = approved.machine()
    monkeypatch.setattr(approved, "machine", lambda: here)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    for _ in range(3):
        assert not dispatch.metal("qmv", mx.float16, 4)
    assert not dispatch.metal("lora", mx.bfloat16, 1)
    asked = {"qmv float16 to 16": 3, "lora bfloat16 1": 1}
    dispatch.metal("qmv", mx.float16, 1), dispatch.metal("moe", mx.float16, 1), dispatch.metal("lora", mx.int32, 1)
    assert dispatch.undecided == asked
    assert dispatch.metal_possible("lora", mx.bfloat16, 1)
    assert dispatch.metal_possible("qmv", mx.float16, 1)
    assert not dispatch.metal_possible("moe", mx.float16, 1)
    for value in ("0", "1"):
        monkeypatch.setenv("MACLLM_METAL", value)
        assert dispatch.metal("sample", mx.float32, 1) is dispatch.metal_possible("sample", mx.float32, 1)
    with dispatch.using("stock"):
        assert not dispatch.metal("sample", mx.float32, 1)
    assert dispatch.undecided == asked


def test_a_quick_trial_adds_decisions_but_keeps_those_of_the_whole_test(unknown: Path) -> None:
    approved.add(Decisions({"moe float16 1": True, "qmv float16 1": False}, {"qmv float16 1": "slower"}))
    assert approved.load() == Decisions(
        {"moe float16 1": True, "qmv float16 1": False},
        {"qmv float16 1": "slower"},
        frozenset({"moe float16 1", "qmv float16 1"}),
    )
    approved.add(Decisions({"moe float16 1": False, "lora float16 1": True}, {"moe float16 1": "wrong"}))
    approved.load.cache_clear()
    first = approved.load()
    assert first is not None
    assert first.decisions == {"moe float16 1": False, "qmv float16 1": False, "lora float16 1": True}
    assert first.reasons == {"qmv float16 1": "slower", "moe float16 1": "wrong"}
    approved.save(Decisions({"qmv float16 1": True}))
    approved.add(Decisions({"qmv float16 1": False, "lora float16 1": True}, {"qmv float16 1": "slower"}))
    approved.load.cache_clear()
    whole = Decisions({"qmv float16 1": True, "lora float16 1": True}, {}, frozenset({"lora float16 1"}))
    assert approved.load() == whole


def test_decisions_of_another_system_are_discarded(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approved.add(Decisions({"moe float16 1": True}))
    here = approved.machine()
    monkeypatch.setattr(approved, "machine", lambda: here | {"system": "macOS 27.0 26A1"})
    approved.load.cache_clear()
    assert approved.load() is None
    approved.add(Decisions({"qmv float16 1": True}))
    approved.load.cache_clear()
    assert approved.load() == Decisions({"qmv float16 1": True}, {}, frozenset({"qmv float16 1"}))


def test_one_process_at_a_time_times_kernels(unknown: Path) -> None:
    with approved.alone(wait=False) as first, approved.alone(wait=False) as second:
        assert (first, second) == (True, False)
    with approved.alone(wait=False) as third:
        assert third


@pytest.mark.parametrize(
    "size", [(1, "1"), (2, "to 16"), (16, "to 16"), (17, "to 1024"), (1024, "to 1024"), (1025, "more")]
)
def test_a_size_belongs_to_its_bucket(size: tuple[int, str]) -> None:
    assert approved.bucket(size[0]) == size[1]


DAMAGES: dict[str, Callable[[str], str | bytes]] = {
    "nothing in it": lambda text: "",
    "half of it": lambda text: text[: len(text) // 2],
    "no text": lambda text: b"\xff\xfe\x00",
    "a list": lambda text: "[]",
    "too deep": lambda text: "[" * 100_000,
    "a number for decisions": lambda text: text.replace('"decisions": {', '"decisions": 3, "others": {'),
    "a word for a decision": lambda text: text.replace("true", '"yes"'),
    "a word for the quick ones": lambda text: text.replace('"quick": []', '"quick": "x"'),
    "no reasons": lambda text: text.replace('"reasons"', '"others"'),
    "another chip": lambda text: text.replace('"chip": "', '"chip": "another '),
    "another system": lambda text: text.replace('"system": "', '"system": "another '),
    "another MLX": lambda text: text.replace('"mlx": "', '"mlx": "1'),
    "other kernels": lambda text: text.replace('"kernels": "', '"kernels": "0'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_or_one_of_another_machine_is_ignored(
    unknown: Path, damage: Callable[[str], str | bytes]
) -> None:
    approved.save(Decisions({"qmv float16 1": True}))
    spoilt = damage(unknown.read_text())
    assert spoilt != unknown.read_text()
    unknown.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    approved.load.cache_clear()
    assert approved.load() is None
    assert not approved.decision("qmv", mx.float16, 1)


def test_saved_decisions_survive_a_failed_write(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approved.save(Decisions({"qmv float16 1": True}))

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        approved.save(Decisions({"qmv float16 1": False}))
    approved.load.cache_clear()
    assert approved.decision("qmv", mx.float16, 1)
    assert [path.name for path in unknown.parent.iterdir()] == ["metal.json"]


def test_the_hash_changes_with_a_kernel(
    spoiled: Callable[[str, str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approved, "HERE", metal.HERE)
    before = approved.kernels_hash()
    assert approved.kernels_hash() == before
    spoiled("qmv", PRODUCT, "")
    assert approved.kernels_hash() != before
