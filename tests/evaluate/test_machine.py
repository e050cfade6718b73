"""Measured limits of the machine: memory bandwidth and arithmetic."""

from __future__ import annotations

import mlx.core as mx
import pytest

from macllm.evaluate import machine


def test_bandwidth_and_arithmetic_are_work_divided_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(machine, "_PRODUCT", 128)
    monkeypatch.setattr(machine, "_CPU_PRODUCT", 128)
    monkeypatch.setattr(machine, "_fastest", lambda run, repeats: (run(), 0.5)[1])
    assert machine.operations_per_second(mx.float32) == 2 * 128**3 / 0.5
    monkeypatch.setattr(machine, "_numpy_read_seconds", lambda repeats: 0.25)
    assert machine.read_bytes_per_second() == (1 << 22) / (0.25 if mx.default_device() == mx.cpu else 0.5)


def test_the_fastest_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 3.0, 4.0, 4.0, 6.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert machine._fastest(lambda: None, 3) == 1.0
