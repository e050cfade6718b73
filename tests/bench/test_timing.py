"""Arithmetic of the benchmarks' measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from timing import Series, print_json, seconds_to_text, take_turns


def test_contestants_take_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []

    def contestant(name: str):
        return lambda: order.append(name) or float(len(order))

    results = take_turns({"a": contestant("a"), "b": contestant("b")}, rounds=2, warm_ups=1)
    assert order == ["a", "b"] * 3
    assert results == {"a": Series((3.0, 5.0)), "b": Series((4.0, 6.0))}


def test_spread_is_half_the_quartile_distance_over_the_median() -> None:
    assert Series((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)).spread == pytest.approx((6 - 2) / 2 / 4)
    assert Series((3.0,)).spread == 0.0


def test_time_to_text_ends_with_the_text_after_the_marker() -> None:
    program = "import time; print('===', flush=True); time.sleep(0.3); print('x', flush=True); time.sleep(2)"
    assert 0.3 < seconds_to_text([sys.executable, "-c", program], b"===\n") < 2.3


def test_a_command_without_output_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with 0"):
        seconds_to_text([sys.executable, "-c", "pass"])


def test_the_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("bench", {"table": {"a": Series((2.0, 2.0))}}, {"ratio": 1.5})
    found = json.loads(capsys.readouterr().out)
    assert found["results"] == {"table": {"a": {"median": 2.0, "spread": 0.0}}}
    assert found["ratios"] == {"ratio": 1.5}
