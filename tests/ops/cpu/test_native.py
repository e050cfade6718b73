"""The native module inside MLX: laziness, layouts, types, compilation, and turning it off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.ops.cpu import build


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )


def test_inputs_in_any_layout_are_read_correctly(kernels: ModuleType) -> None:
    x = mx.random.normal((6, 10, 40))
    for odd in (x.transpose(2, 0, 1), x[::2, 1::3, ::-1], mx.broadcast_to(x[:1, :1], (5, 7, 40)), x[:, :, 3]):
        want = kernels.softmax(mx.array(np.array(odd)))
        np.testing.assert_array_equal(np.array(kernels.softmax(odd)), np.array(want))


def test_a_long_lazy_graph_gives_the_same_result(kernels: ModuleType) -> None:
    x = start = mx.random.normal((33, 17))
    for _ in range(50):
        x = kernels.rms_norm(x + kernels.gate(x, x, "silu"), mx.ones(17), 1e-6)
    step = start
    for _ in range(50):
        step = mx.fast.rms_norm(step + step * mx.sigmoid(step) * step, mx.ones(17), 1e-6)
    np.testing.assert_allclose(np.array(x), np.array(step), rtol=1e-3, atol=1e-4)


def test_kernels_work_inside_compile_and_value_and_grad(kernels: ModuleType) -> None:
    def loss(x: mx.array, w: mx.array) -> mx.array:
        return (kernels.rms_norm(x, w, 1e-5) * kernels.unary(x, "silu")).sum()

    x, w = mx.random.normal((4, 31)), mx.random.normal((31,))
    plain = mx.value_and_grad(loss, argnums=(0, 1))(x, w)
    compiled = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))
    for _ in range(2):
        (value, grads) = compiled(x, w)
        np.testing.assert_allclose(value.item(), plain[0].item(), rtol=1e-6)
        for got, want in zip(grads, plain[1], strict=True):
            np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-6, atol=1e-6)


def test_an_empty_array_stays_empty(kernels: ModuleType) -> None:
    assert kernels.softmax(mx.zeros((0, 5))).shape == (0, 5)
    assert kernels.unary(mx.zeros((3, 0)), "exp").shape == (3, 0)


def test_other_types_are_refused(kernels: ModuleType) -> None:
    with pytest.raises(ValueError, match="float32"):
        kernels.softmax(mx.zeros(4, mx.bfloat16))
    with pytest.raises(ValueError, match="shape"):
        kernels.gate(mx.zeros(4), mx.zeros(5), "silu")


def test_native_kernels_are_used_for_float32_only_and_obey_using() -> None:
    x = mx.zeros(4)
    assert dispatch.native(x, None) is not None
    assert dispatch.native(x, x.astype(mx.bfloat16)) is None
    with dispatch.using("stock"):
        assert dispatch.native(x) is None
        with dispatch.using("native"):
            assert dispatch.native(x) is not None
    assert dispatch.choice() == "native"


SHOW = "from macllm.ops import cpu; print(cpu.available(), cpu.reason())"


def test_the_environment_variable_turns_kernels_off_silently() -> None:
    done = _run(SHOW, MACLLM_NATIVE="0")
    assert done.stdout == "False MACLLM_NATIVE=0\n"
    assert not done.stderr


def test_each_home_has_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACLLM_NATIVE_CACHE", "")
    monkeypatch.setenv("MACLLM_HOME", "/a/home")
    assert build.cache_folder() == Path("/a/home/cache/native")
    monkeypatch.delenv("MACLLM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    assert build.cache_folder() == Path("/a/cache/macllm/native")


def test_a_changed_source_has_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "new.cpp").write_text("int x;")
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert build.library() != before
