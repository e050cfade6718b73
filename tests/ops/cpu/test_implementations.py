"""Ops give equal results with native kernels and MLX's operations, and native kernels are used."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import attention, cpu, cross_entropy, dispatch, gate, kv, linear, norm, rope

WAVES = mx.array(100 ** (np.arange(0, 16, 2) / 16), mx.float32)
HALF = mx.array(np.random.default_rng(3).standard_normal((24, 16))).astype(mx.bfloat16)
SEEN = mx.array(np.random.default_rng(0).random((2, 1, 9, 9)) < 0.7) | mx.eye(9).astype(mx.bool_)
BIAS = mx.array(np.random.default_rng(1).standard_normal((1, 4, 9, 9)), mx.float32)


def _attend(mask: attention.MaskArray, softcap: float | None = None) -> Callable[[mx.array], mx.array]:
    return lambda x: attention.attention(x, kv.Dense(x[:, ::2], x[:, ::2] * 2), scale=0.3, mask=mask, softcap=softcap)


OPS: dict[str, tuple[str, Callable[[mx.array], mx.array]]] = {
    "rms_norm": ("rms_norm", lambda x: norm.rms_norm(x, mx.arange(16) / 8, 1e-5)),
    "layer_norm": ("layer_norm", lambda x: norm.layer_norm(x, mx.arange(16) / 8, mx.arange(16) / 4, 1e-5)),
    "layer_norm, no bias": ("layer_norm", lambda x: norm.layer_norm(x, mx.arange(16) / 8, None, 1e-5)),
    "norm": ("norm", lambda x: norm.norm([mx.stop_gradient(x), mx.ones(3)]) + 0 * x),
    "linear": ("linear", lambda x: linear.dense_linear(x, x[0, 0])),
    "linear, 16 bits": ("linear", lambda x: linear.dense_linear(x, HALF)),
    "linear, biased": ("linear", lambda x: linear.dense_linear(x, x[0, 0], mx.arange(9) / 4)),
    "silu": ("unary", lambda x: gate.activate(x, "silu")),
    "gelu gate": ("gate", lambda x: gate.gated(x, x + 1, "gelu")),
    "rope": ("rope", lambda x: rope.rope(x, WAVES, 3)),
    "cross entropy": ("cross_entropy", lambda x: cross_entropy.cross_entropy(x, mx.zeros(x.shape[:-1], mx.int32))),
    "attention, causal": ("attention", _attend("causal")),
    "attention, masked": ("attention", _attend(SEEN)),
    "attention, soft-capped": ("attention", _attend("causal", softcap=0.8)),
}


def _both(op: Callable[[mx.array], mx.array], choice: Literal["stock", "native"]) -> list[mx.array]:
    x = mx.array(np.random.default_rng(2).standard_normal((2, 4, 9, 16)), mx.float32)
    with dispatch.using(choice):
        return [op(x), mx.grad(lambda x: mx.square(op(x)).sum())(x)]


@pytest.mark.parametrize("name", OPS)
def test_native_is_used_and_equals_stock(name: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, op = OPS[name]
    called: list[str] = []

    class Counted:
        def __getattr__(self, attribute: str) -> object:
            called.append(attribute)
            return getattr(kernels, attribute)

    monkeypatch.setattr(cpu, "kernels", Counted)
    stock = _both(op, "stock")
    assert not called
    for got, want in zip(_both(op, "native"), stock, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=2e-4, atol=2e-5)
    assert kernel in called


def test_a_trained_bias_has_a_gradient() -> None:
    x = mx.random.normal((2, 4, 9, 16))
    slope = mx.grad(lambda bias: mx.square(_attend(bias)(x)).sum())(BIAS)
    assert mx.abs(slope).max().item() > 0


def test_half_precision_falls_back_to_mlx() -> None:
    x = mx.random.normal((2, 4, 9, 16)).astype(mx.bfloat16)
    assert norm.rms_norm(x, mx.ones(16, mx.bfloat16), 1e-5).dtype == mx.bfloat16
    assert gate.gated(x, x, "silu").dtype == mx.bfloat16
    assert _attend("causal")(x).dtype == mx.bfloat16
