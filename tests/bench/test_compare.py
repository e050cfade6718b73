"""Ratios, goals and rows that compare.py makes of its measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import compare_against
from compare import peak_of
from compare_against import FIRST, by_round, quiet, side
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
from shapes import SHAPES, trained
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


def test_the_goal_of_dense_weights_is_the_better_of_torch_and_llama() -> None:
    some = rows(**BESIDE_LLAMA, torch={PROMPT: 400.0, DECODE: 20.0})
    assert found(Table("S", "bf16", "inference"), some) == {
        f"{DECODE} over llama.cpp": (0.75, False),
        f"{PROMPT} over llama.cpp": (1.25, True),
    }


def test_the_goals_of_4_bits_are_a_hundred_times_stock_and_llama() -> None:
    some = rows(**BESIDE_LLAMA, mlx_lm={PROMPT: 1.0, DECODE: 0.5})
    assert found(Table("M", "q4", "inference"), some) == {
        f"{DECODE} over mlx-lm": (60.0, False),
        f"{PROMPT} over mlx-lm": (100.0, True),
        f"{DECODE} over llama.cpp": (0.75, False),
        f"{PROMPT} over llama.cpp": (1.25, True),
    }


def test_the_goal_of_the_largest_shape_is_the_bandwidth() -> None:
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


def test_an_absent_peer_sets_no_goal() -> None:
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


def test_only_mlx_lm_computes_less() -> None:
    table, whole = Table("M", "q4", "inference"), Load()
    assert load_of("torch", table, whole) == whole
    less = load_of("mlx-lm", table, whole)
    assert (less.prompt, less.new, less.batch, less.seconds) == (8, 3, 1, 0.0)
    assert load_of("mlx-lm", table, Load(prompt=4, new=2)).prompt == 4


def test_training_and_growth_are_measured_on_some_tables_only() -> None:
    asked = {
        table.title
        for s in "SML"
        for w in ("f32", "bf16", "q8")
        for t in ("lora", "full", "growth")
        if (table := Table(s, w, t)).exists
    }
    adapters = {f"{s} {w} lora" for s in "SML" for w in ("f32", "bf16")}
    assert asked == adapters | {"S f32 full", "M f32 full", "M f32 growth", "M bf16 growth"}


def test_a_row_has_medians_and_spread_or_a_reason() -> None:
    assert line("torch", {DECODE: Series((9.0, 10.0, 11.0))}, "") == "torch      decode tokens/s      10.0 ±10%"
    assert line("torch", {}, "not installed") == "torch         not installed"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_child_excludes_its_parent() -> None:
    held = bytearray(400 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    assert peak_bytes() > 400e6
    with subprocess.Popen(["sleep", "5"]) as child:
        child_peak = peak_of(child.pid)
        child.kill()
    assert 0 < child_peak < 100e6
    assert peak_of(os.getpid()) > 400e6
    assert peak_of(2**22 + 1) == 0


def test_ratios_against_a_commit_are_taken_round_by_round() -> None:
    ratio = by_round(f"S q4 inference: {DECODE}", [90.0, 50.0, 110.0], [100.0, 50.0, 100.0])
    assert ratio.rounds.values == (0.9, 1.0, 1.1)
    assert ratio.met


def test_fewer_seconds_and_fewer_bytes_are_better() -> None:
    assert by_round(f"S q4: {FIRST}", [2.0], [1.0]) == (f"S q4: {FIRST}", one(0.5))
    assert not by_round(f"S q4: {FIRST}", [2.0], [1.0]).met
    assert by_round(f"S q4: {PEAK}", [1.0], [2.0]).met
    assert not by_round(f"S q4: {PEAK}", [1.1], [1.0]).met


def test_a_disturbed_measurement_is_repeated_and_the_quietest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = iter([({DECODE: 1.0}, 0.9), ({DECODE: 2.0}, 0.3), ({DECODE: 3.0}, 0.5)])
    monkeypatch.setattr(compare_against, "foreign_cores", lambda measure: next(tries))
    assert quiet(lambda: {}) == ({DECODE: 2.0}, 0.3)


def test_an_interpreter_without_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no macllm installed from a checkout"):
        side(Path("/bin/false"), tmp_path)


def test_a_checkpoint_gives_its_shape_and_weights(tmp_path: Path) -> None:
    config = SHAPES["S"].config() | {"rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.norm.weight": mx.ones(4, mx.bfloat16)})
    shape = trained(tmp_path)
    assert shape.config() == config
    assert {name: value.tolist() for name, value in shape.tensors().items()} == {"model.norm.weight": [1.0] * 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="tied head"):
        trained(tmp_path)
