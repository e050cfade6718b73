"""What compare.py makes of its measurements."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from compare import peak_of
from compare_table import (
    CACHE,
    DECODE,
    LONG,
    PEAK,
    PROMPT,
    SHORT,
    TRAIN,
    WEIGHTS,
    Load,
    Table,
    goals,
    line,
    load_of,
    ratios,
)
from compare_worker import peak_bytes
from timing import Series


def one(value: float) -> Series:
    return Series((value,))


def rows(**peers: dict[str, float]) -> dict[str, dict[str, Series]]:
    return {
        peer.replace("_", "-").replace("llama-cpp", "llama.cpp"): {name: one(value) for name, value in measures.items()}
        for peer, measures in peers.items()
    }


def found(
    table: Table, some: dict[str, dict[str, Series]], bandwidth: float | None = None
) -> dict[str, tuple[float, bool]]:
    return {
        goal.name.removeprefix(f"{table.title}: "): (goal.value, goal.met) for goal in goals(table, some, bandwidth)
    }


BESIDE_LLAMA = {
    "macllm": {PROMPT: 100.0, DECODE: 30.0, WEIGHTS: 1.0},
    "llama_cpp": {PROMPT: 80.0, DECODE: 40.0},
}


def test_dense_weights_have_to_reach_the_better_of_torch_and_llama() -> None:
    some = rows(**BESIDE_LLAMA, torch={PROMPT: 400.0, DECODE: 20.0})
    assert found(Table("S", "bf16", "inference"), some) == {
        f"{DECODE} over llama.cpp": (0.75, False),
        f"{PROMPT} over llama.cpp": (1.25, True),
    }


def test_four_bits_have_to_be_a_hundred_times_stock_and_reach_llama() -> None:
    some = rows(**BESIDE_LLAMA, mlx_lm={PROMPT: 1.0, DECODE: 0.5})
    assert found(Table("M", "q4", "inference"), some) == {
        f"{DECODE} over mlx-lm": (60.0, False),
        f"{PROMPT} over mlx-lm": (100.0, True),
        f"{DECODE} over llama.cpp": (0.75, False),
        f"{PROMPT} over llama.cpp": (1.25, True),
    }


def test_the_largest_has_to_use_the_bandwidth() -> None:
    some = rows(macllm={PROMPT: 1.0, DECODE: 20.0, WEIGHTS: 500.0})
    assert found(Table("L", "q8", "inference"), some, 20e9) == {"share of the read bandwidth": (0.5, False)}
    assert found(Table("M", "q8", "inference"), some, 20e9) == {}


def test_training_is_compared_in_speed_and_memory() -> None:
    some = rows(macllm={TRAIN: 10.0, PEAK: 300.0}, torch={TRAIN: 8.0, PEAK: 200.0}, mlx_lm={TRAIN: 2.0, PEAK: 600.0})
    assert found(Table("S", "f32", "lora"), some) == {
        "over torch": (1.25, True),
        "memory over torch": (1.5, False),
        "over mlx-lm": (5.0, False),
        "memory over mlx-lm": (0.5, True),
    }


def test_growth_is_bounded_in_time_and_bytes() -> None:
    some = rows(macllm={SHORT: 10.0, LONG: 14.0, CACHE: 1.01, PEAK: 1.0})
    assert list(found(Table("M", "f32", "growth"), some).values()) == [(1.4, True), (1.01, False)]


def test_who_is_absent_asks_for_nothing() -> None:
    assert found(Table("S", "q4", "inference"), rows(torch={PROMPT: 1.0, DECODE: 1.0})) == {}
    assert found(Table("S", "f32", "full"), rows(macllm={TRAIN: 1.0, PEAK: 1.0})) == {}


def test_a_ratio_is_as_uncertain_as_both_its_sides() -> None:
    ours, theirs = Series((9.0, 10.0, 11.0)), Series((4.0, 5.0, 6.0))
    some = {"macllm": {TRAIN: ours}, "torch": {TRAIN: theirs}}
    (goal,) = goals(Table("S", "f32", "lora"), some)
    assert goal.value == 2.0
    assert goal.spread == pytest.approx(0.1 + 0.2)
    assert str(goal).startswith("met ")


def test_ratios_are_ours_over_theirs() -> None:
    some = rows(macllm={TRAIN: 10.0, PEAK: 1.0}, torch={TRAIN: 8.0})
    assert ratios(Table("S", "f32", "full"), some) == {f"S f32 full, {TRAIN}, macllm over torch": 1.25}


def test_mlx_lm_computes_less_and_nobody_else() -> None:
    table, whole = Table("M", "q4", "inference"), Load()
    assert load_of("torch", table, whole) == whole
    less = load_of("mlx-lm", table, whole)
    assert (less.prompt, less.new, less.batch, less.seconds) == (8, 3, 1, 0.0)
    assert load_of("mlx-lm", table, Load(prompt=4, new=2)).prompt == 4


def test_tables_that_nobody_asks_for() -> None:
    asked = {
        table.title
        for s in "SML"
        for w in ("f32", "bf16", "q8")
        for t in ("lora", "full", "growth")
        if (table := Table(s, w, t)).exists
    }
    adapters = {f"{s} {w} lora" for s in "SML" for w in ("f32", "bf16")}
    assert asked == adapters | {"S f32 full", "M f32 full", "M f32 growth", "M bf16 growth"}


def test_a_row_shows_medians_and_spread_or_why_there_is_none() -> None:
    assert line("torch", {DECODE: Series((9.0, 10.0, 11.0))}, "") == "torch      decode tokens/s      10.0 ±10%"
    assert line("torch", {}, "not installed") == "torch         not installed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_childs_peak_is_its_own_and_not_its_parents() -> None:
    held = bytearray(400 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert peak_bytes() > 400e6
    with subprocess.Popen(["sleep", "5"]) as child:
        child_peak = peak_of(child.pid)
        child.kill()
    assert 0 < child_peak < 100e6
    assert peak_of(os.getpid()) > 400e6
    assert peak_of(2**22 + 1) == 0
