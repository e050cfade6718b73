"""OpenBLAS computes MLX's matmul in any import order, unless disabled."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import cpu
from macllm.ops.cpu import blas, machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the Linux wheel's BLAS is the subject")

REPORT = "import macllm.ops; from macllm.ops.cpu import blas; print(blas.install())"


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_openblas_computes_matmul_here() -> None:
    serving = blas.install()
    assert serving.name.startswith("OpenBLAS")
    assert serving.reason is None
    assert serving.threads >= 1


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 257, 130), (33, 17, 5), (129, 300, 257)])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_matmul_is_correct(m: int, k: int, n: int, transposed: tuple[bool, bool]) -> None:
    generator = np.random.default_rng(m + k + n)
    a = generator.standard_normal((k, m) if transposed[0] else (m, k)).astype(np.float32)
    b = generator.standard_normal((n, k) if transposed[1] else (k, n)).astype(np.float32)
    x, y = (mx.array(array).T if flip else mx.array(array) for array, flip in zip((a, b), transposed, strict=True))
    want = np.matmul(a.T if transposed[0] else a, b.T if transposed[1] else b, dtype=np.float64)
    np.testing.assert_allclose(np.array(x @ y), want, rtol=1e-5, atol=2e-5 * k**0.5)


def test_the_gemm_can_be_installed_after_a_first_product() -> None:
    before = "import mlx.core as mx; a = mx.ones((64, 64)); mx.eval(a @ a); "
    after = "; assert (a @ a).sum().item() == 64**3"
    assert "OpenBLAS" in _run(before + REPORT + after)


def test_macllm_native_0_turns_it_off() -> None:
    assert "MACLLM_NATIVE=0" in _run(REPORT, MACLLM_NATIVE="0")


def test_the_users_thread_count_is_kept() -> None:
    assert "threads=1" in _run(REPORT, OPENBLAS_NUM_THREADS="1")


def test_a_foreign_blas_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_rebound", set())
    assert blas.rebind("cblas_sgemm", 1) == "another BLAS already provides cblas_sgemm"


def test_a_missing_wheel_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_installed", None)
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    assert blas.install().reason == "scipy-openblas32 is not installed"


def test_cores_are_at_least_one_and_at_most_the_quota() -> None:
    assert 1 <= machine.physical_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 5, 3),
        (1, 2000, 3001),
        (301, 500, 700),
        (1000, 129, 97),
        (96, 3000, 200),
        (4, 40000, 16),
        (27, 390, 257),
        (1025, 1100, 33),
        (1025, 1100, 31),
        (2000, 8, 700),
        (16, 3000, 900),
    ],
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_a_divided_product_is_correct(m: int, k: int, n: int, transposed: tuple[bool, bool]) -> None:
    assert cpu.available()
    test_matmul_is_correct(m, k, n, transposed)


def test_batched_products_and_products_with_a_bias_are_correct() -> None:
    assert cpu.available()
    a, b, c = (mx.random.normal(shape) for shape in ((3, 70, 33), (3, 33, 65), (65,)))
    want = np.array(a).astype(np.float64) @ np.array(b) + np.array(c)
    np.testing.assert_allclose(np.array(a @ b + c), want, atol=1e-4)
    want = np.array(a[0]).astype(np.float64) @ np.array(b[0]) * 0.5 + 2 * np.array(c)
    np.testing.assert_allclose(np.array(mx.addmm(c, a[0], b[0], alpha=0.5, beta=2.0)), want, atol=1e-4)


def test_a_large_product_adds_to_the_result() -> None:
    assert cpu.available()
    a, b, c = (mx.random.normal(shape) for shape in ((211, 801), (801, 97), (211, 97)))
    for beta in (1.0, 0.5):
        want = np.array(a).astype(np.float64) @ np.array(b) + beta * np.array(c)
        np.testing.assert_allclose(np.array(mx.addmm(c, a, b, beta=beta)), want, atol=1e-3)
