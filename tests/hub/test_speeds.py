"""Speeds that were measured on this machine, and estimates from its bandwidth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from macllm.hub import speeds
from macllm.hub.speeds import ModelSpeed


@pytest.fixture
def path() -> Path:
    return speeds.state_folder() / "speeds.json"


def test_the_speed_of_an_answer_is_found_again(path: Path) -> None:
    speeds.record("org/model", 61.44, 200)
    speeds.record("org/other", 5.0, 20)
    speeds.record("org/model", 62.0, 100)
    assert speeds.load().speed("org/model", 1e9) == ModelSpeed(62.0, True)
    assert speeds.load().speed("org/other", None) == ModelSpeed(5.0, True)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("rate", "tokens"), [(60.0, 7), (0.0, 100), (float("inf"), 100), (float("nan"), 100)])
def test_an_answer_that_says_nothing_about_speed_is_not_kept(rate: float, tokens: int, path: Path) -> None:
    speeds.record("org/model", rate, tokens)
    assert not path.exists()


def test_without_a_measured_bandwidth_nothing_is_estimated() -> None:
    speeds.record("org/model", 61.0, 100)
    assert speeds.load().speed("org/new", 1e9) is None


def test_a_measured_bandwidth_estimates_the_speed_of_other_models() -> None:
    speeds.record_machine(bandwidth=100e9)
    found = speeds.load()
    assert found.speed("org/new", 4e9) == ModelSpeed(25.0, False)
    assert found.speed("org/unknown-size", None) is None


def test_measurements_of_another_machine_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds.record("org/model", 61.0, 100)
    speeds.record_machine(bandwidth=1e9, memory_limit=5)
    monkeypatch.setattr(speeds.os, "cpu_count", lambda: 99)
    assert speeds.load() == speeds.Measurements({})


def test_the_memory_limit_of_the_engine_is_kept() -> None:
    speeds.record_machine(memory_limit=12_000_000_000)
    speeds.record_machine(bandwidth=3e9)
    assert (speeds.load().memory_limit, speeds.load().bandwidth) == (12_000_000_000, 3e9)


@pytest.mark.parametrize(
    "content", ["", "[", "[]", '{"machines": 3}', '{"machines": {"x": 1}}', '{"version": 9}', "\x00" * 50]
)
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(content: str, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert speeds.load() == speeds.Measurements({})
    speeds.record("org/model", 61.0, 100)
    assert speeds.load().tokens_per_second == {"org/model": 61.0}


def test_odd_values_in_the_file_are_ignored(path: Path) -> None:
    speeds.record("org/model", 61.0, 100)
    everything = json.loads(path.read_text())
    (own,) = everything["machines"].values()
    own["bandwidth"], own["memory_limit"] = "fast", True
    own["models"] |= {"a": {"tokens_per_second": -1}, "b": 3, "c": {"tokens_per_second": "x"}}
    path.write_text(json.dumps(everything))
    assert speeds.load() == speeds.Measurements({"org/model": 61.0})
    own["models"] = [1]
    path.write_text(json.dumps(everything))
    speeds.record("org/new", 6.0, 100)
    assert speeds.load().tokens_per_second == {"org/new": 6.0}


def test_a_state_folder_that_cannot_be_written_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MACLLM_HOME", str(tmp_path / "file"))
    speeds.record("org/model", 61.0, 100)
    assert speeds.load() == speeds.Measurements({})
