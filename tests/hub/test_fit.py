"""Memory that models need, and the context that fits beside their weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from macllm.hub import fit as fitting
from macllm.hub.fit import OVERHEAD_BYTES, Fit, fit, memory_limit, needed_bytes
from macllm.hub.shape import LayerCache, ModelShape

SHAPE = ModelShape(context_tokens=1000, cache=(LayerCache(100, None), LayerCache(100, 10)))


@pytest.fixture(autouse=True)
def _a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting.sys, "platform", "darwin")
    fitting._wired_limit.cache_clear()


def memory_for(tokens: int) -> int:
    return needed_bytes(5000, SHAPE, tokens)


@pytest.mark.parametrize("tokens", [1, 7, 10, 11, 500, 999])
def test_the_context_that_fits_is_the_longest_one(tokens: int) -> None:
    assert fit(5000, SHAPE, memory_for(tokens)).tokens == tokens
    assert fit(5000, SHAPE, memory_for(tokens) - 1).tokens == tokens - 1


def test_a_model_with_its_whole_context_fits_whole() -> None:
    assert fit(5000, SHAPE, memory_for(1000)) == Fit(1000, whole=True)
    assert fit(5000, SHAPE, 10**12) == Fit(1000, whole=True)


def test_weights_that_do_not_fit_name_the_bytes_that_are_missing() -> None:
    assert fit(5000, SHAPE, 4000 + OVERHEAD_BYTES) == Fit(0, over_bytes=1000)


def test_an_unknown_cache_says_only_that_the_weights_fit() -> None:
    assert fit(5000, ModelShape(), OVERHEAD_BYTES + 5000) == Fit(None)


def test_numbers_take_half_as_much_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = needed_bytes(0, SHAPE, 10) - OVERHEAD_BYTES
    monkeypatch.setattr(fitting.sys, "platform", "linux")
    assert needed_bytes(0, SHAPE, 10) - OVERHEAD_BYTES == 2 * on_gpu == 8000


@pytest.mark.parametrize(
    ("answer", "gigabytes", "expected"),
    [("0\n", 24, 16 << 30), ("0\n", 64, 48 << 30), ("20480\n", 24, 20 << 30), ("what?", 24, 16 << 30)],
)
def test_the_limit_of_a_mac_is_the_users_or_a_share_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, answer: str, gigabytes: int, expected: int
) -> None:
    pages = {"SC_PAGE_SIZE": 1 << 14, "SC_PHYS_PAGES": gigabytes << 16}
    monkeypatch.setattr(fitting.os, "sysconf", pages.__getitem__)
    ran = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(fitting.subprocess, "run", lambda *_, **__: ran)
    assert memory_limit() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("text", "expected"), [("1073741824\n", 1 << 30), ("max\n", 8 << 30), (None, 8 << 30)])
def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, text: str | None, expected: int) -> None:
    def read(path: Path, encoding: str) -> str:
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(fitting.sys, "platform", "linux")
    monkeypatch.setattr(fitting.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 << 20}.__getitem__)
    monkeypatch.setattr(Path, "read_text", read)
    assert memory_limit() == expected
