"""mlx-lm's kernels for Apple's GPUs, unmodified, against MLX's operations.

Slow: all kinds, widths and types together.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from tests.ops.metal.sweeps import sweep
from tests.simulator.intercept import Log, simulated

TYPES = [mx.float32, mx.float16, mx.bfloat16]


def fresh(name: str) -> ModuleType:
    """A new copy of a module, which makes its kernels again."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr("mlx_lm.utils.can_run_metal", lambda: True)
    with simulated() as log:
        yield log


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).astype(dtype)


def near(got: mx.array, want: mx.array, roundings: float = 1.0) -> None:
    """Assert an error within some roundings of the type, relative to the largest number."""
    epsilon = {mx.float32: 2.0**-20, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}[got.dtype]
    a, b = (np.array(x.astype(mx.float32), np.float64) for x in (got, want))
    np.testing.assert_allclose(a, b, rtol=0, atol=roundings * epsilon * max(1.0, float(np.abs(b).max())))


def rms(x: mx.array, eps: float = 1e-5) -> mx.array:
    x = x.astype(mx.float32)
    return x * mx.rsqrt((x * x).mean(-1, keepdims=True) + eps)


@pytest.mark.parametrize(("dim", "dtype"), sweep([64, 40], TYPES))
def test_mlx_lms_qk_norm_equals_mlxs_operations(log: Log, dtype: mx.Dtype, dim: int) -> None:
    qkvg = random(3, 5, 12 * dim, dtype=dtype)
    sizes: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": dim, "eps": 1e-5, "query_scale": 0.5}
    q, k = fresh("mlx_lm.kernels.qk_norm").qk_norm(qkvg, **sizes)
    turned_q, turned_k = fresh("mlx_lm.kernels.qk_norm_rope").qk_norm_rope(qkvg, rope_base=1e4, offset=7, **sizes)
    heads = rms(qkvg[..., : 6 * dim].reshape(3, 5, 6, dim))
    want_q, want_k = heads[:, :, :4] * 0.5, heads[:, :, 4:]
    near(q, want_q)
    near(k, want_k)
    for got, want in ((turned_q, want_q), (turned_k, want_k)):
        turned = mx.fast.rope(want.transpose(0, 2, 1, 3), dim, traditional=True, base=1e4, scale=1.0, offset=7)
        near(got, turned.transpose(0, 2, 1, 3), 4.0)
    assert log.faults == []


@pytest.mark.parametrize(("width", "dtype"), sweep([96, 1000], TYPES))
def test_mlx_lms_norm_add_norm_equals_mlxs_operations(log: Log, dtype: mx.Dtype, width: int) -> None:
    kernels = fresh("mlx_lm.kernels.norm_add_norm")
    branch, stream = random(2, 3, width, dtype=dtype), random(2, 3, width, seed=1)
    alpha, beta, post = random(width, seed=2), random(width, seed=3), random(width, seed=4)
    norm = nn.RMSNorm(width, eps=1e-6)
    norm.weight = random(width, seed=5)
    added, normed = kernels.norm_add_norm(
        branch, stream, alpha=alpha, beta=beta, post_weight=None, post_eps=1e-5, next_norm=norm
    )
    want = alpha * stream + beta * rms(branch).astype(dtype).astype(mx.float32)
    near(added, want, 8000 if dtype != mx.float32 else 2)  # the branch is rounded to its type
    near(normed, rms(added, 1e-6) * norm.weight, 2)
    near(kernels.pre_norm(added, norm, dtype=dtype), normed, 0)
    scaled, nothing = kernels.norm_add_norm(
        branch, stream, alpha=alpha, beta=beta, post_weight=post, post_eps=1e-5, next_norm=None
    )
    weighed = (post.astype(dtype) * branch).astype(dtype)
    near(
        scaled,
        alpha * stream + beta * rms(weighed).astype(dtype).astype(mx.float32),
        8000 if dtype != mx.float32 else 2,
    )
    assert nothing is None
    assert log.faults == []


@pytest.mark.parametrize(("experts", "top_k"), [(64, 4), (40, 3)])
def test_mlx_lms_expert_routing_equals_mlxs_operations(log: Log, experts: int, top_k: int) -> None:
    logits, bias = random(8, experts), 0.1 * random(experts, seed=1)
    chosen, weights = fresh("mlx_lm.kernels.expert_routing").expert_routing(
        logits, bias, top_k=top_k, multiplier=1.5, score_eps=1e-6, route_scale=2.0
    )
    scores = mx.sigmoid(1.5 * logits)
    order = mx.argsort(-(scores + bias), axis=-1)[:, :top_k]
    taken = mx.take_along_axis(scores, order, axis=-1)
    assert chosen.tolist() == order.tolist()
    near(weights, taken / (taken.sum(-1, keepdims=True) + 1e-6) * 2.0)
    assert log.faults == []


@pytest.mark.parametrize("width", [64, 520])
def test_mlx_lms_expert_combine_equals_mlxs_operations(log: Log, width: int) -> None:
    experts, weights, norm = random(3, 2, width), random(3, 2, seed=1), random(width, seed=2)
    combine = fresh("mlx_lm.kernels.post_expert_norm_combine").post_expert_norm_combine
    near(combine(experts, weights, norm_weight=norm, eps=1e-5), (rms(experts * norm) * weights[..., None]).sum(-2))
    assert log.faults == []


@pytest.mark.parametrize("turned", [False, True])
def test_mlx_lms_rms_norm_gate_reads_through_strides(log: Log, turned: bool) -> None:
    x = random(2, 5, 4, 48).transpose(0, 2, 1, 3) if turned else random(2, 4, 5, 48)
    gate = random(2, 6, 192, seed=1)[:, 1:]
    got = fresh("mlx_lm.kernels.rms_norm_sigmoid_gate").rms_norm_sigmoid_gate(x, gate, eps=1e-5)
    near(got, rms(x).transpose(0, 2, 1, 3).reshape(2, 5, 192) * mx.sigmoid(gate))
    assert log.faults == []


@pytest.mark.parametrize("heads", [(1, 2), (2, 2)])
def test_mlx_lms_ssm_equals_mlxs_operations(log: Log, heads: tuple[int, int]) -> None:
    groups, n = heads
    module = fresh("mlx_lm.models.ssm")
    x, dt, state = random(2, 1, n, 16), random(2, 1, n, seed=1), random(2, n, 16, 64, seed=2)
    b, c = random(2, 1, groups, 64, seed=3), random(2, 1, groups, 64, seed=4)
    log_a, d, bias, limits = random(n, seed=5), random(n, seed=6), random(n, seed=7), (0.001, 100.0)
    y, after = module.ssm_update_kernel(x, log_a, b, c, d, dt, bias, state, limits)
    want_y, want_after = module.ssm_attn(x, log_a, b, c, d, dt, bias, state, limits)
    near(y, want_y, 8)
    near(after, want_after, 8)
    assert log.faults == []


@pytest.mark.parametrize("kind", ["packed", "tree", "plain", "vector", "masked"])
def test_mlx_lms_gated_delta_equals_mlxs_operations(log: Log, kind: str) -> None:
    module = fresh("mlx_lm.models.gated_delta")
    size = 128 if kind in ("packed", "tree") else 64
    q, k = (random(2, 3, 1, size, seed=s) / size**0.5 for s in (0, 1))
    v, beta = random(2, 3, 2, 16, seed=2), mx.sigmoid(random(2, 3, 2, seed=3))
    g = mx.sigmoid(random(2, 3, 2, *([size] if kind == "vector" else []), seed=4))
    state = random(2, 2, 16, size, seed=5)
    mask = mx.array([[True, False, True], [False, True, True]]) if kind == "masked" else None
    run = module.gated_delta_kernel_xtree if kind == "tree" else module.gated_delta_kernel
    y, after = run(q, k, v, g, beta, state, mask)
    want_y, want_after = module.gated_delta_ops(q, k, v, g, beta, state, mask)
    if mask is not None:
        want_y = mx.where(mask[..., None, None], want_y, 0)
    near(y, want_y, 4)
    near(after, want_after, 4)
    # At a masked position, all lanes of a simdgroup write the same zero.
    kinds = {fault.kind for _, result in log.dispatches for fault in result.faults}
    assert kinds == ({"race"} if kind == "masked" else set())


def test_mlx_lms_wkv7_equals_mlxs_operations(log: Log) -> None:
    module = fresh("mlx_lm.models.rwkv7")
    r, w, k, v, a, b = (0.3 * random(2, 3, 2, 64, seed=s) for s in range(6))
    state = random(2, 2, 64, 64, seed=6)
    y, after = module.wkv7_kernel(r, w, k, v, a, b, state)
    for t in range(3):
        want, state = module._wkv7_step_ops(*(x[:, t] for x in (r, w, k, v, a, b)), state)
        near(y[:, t], want.reshape(2, 2, 64), 8)
    near(after, state, 8)
    assert log.faults == []


@pytest.mark.parametrize("inverted", [False, True])
def test_mlx_lms_bitlinear_equals_mlxs_operations(log: Log, inverted: bool) -> None:
    module = fresh("mlx_lm.models.bitlinear_layers")
    layer = module.BitLinear(128, 32, bias=False, invert_weight_scales=inverted)
    trits = np.random.default_rng(0).integers(0, 3, (32, 128))
    parts = trits.reshape(4, 8, 128)
    layer.weight = mx.array(sum(parts[i] << 2 * i for i in range(4)).astype(np.uint8))
    layer.weight_scale = mx.array([0.75])
    x = random(3, 128)
    near(layer(x), x @ mx.array(trits - 1.0, mx.float32).T * (1 / 0.75 if inverted else 0.75), 4)
    assert log.faults == []


def ordered(make: Callable[..., Any]) -> Callable[..., Any]:
    """The loss kernels with barriers added where lanes race."""

    def kernel(source: str, **options: Any) -> Any:
        barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
        source = source.replace("threadgroup_barrier(mem_flags::mem_none);", barrier)
        return make(source=source.replace("// Share the sum_exp", f"{barrier} // Share the sum_exp"), **options)

    return kernel


@pytest.mark.parametrize(("loss", "vocabulary"), sweep(["kl_div_loss", "js_div_loss"], [5000, 4096]))
def test_mlx_lms_losses_race_and_are_correct_with_barriers(log: Log, loss: str, vocabulary: int) -> None:
    q, p = random(2, vocabulary), random(2, vocabulary, seed=1)

    def run(module: ModuleType) -> tuple[mx.array, mx.array]:
        return mx.value_and_grad(lambda q: getattr(module, loss)(q, p).sum())(q)

    mx.eval(run(fresh("mlx_lm.tuner.losses")))
    assert {name for name, result in log.dispatches if any(f.kind == "race" for f in result.faults)} == {
        f"{loss[:2]}_forward",
        f"{loss[:2]}_backward",
    }
    log.dispatches.clear()
    with patch.object(mx.fast, "metal_kernel", ordered(mx.fast.metal_kernel)):
        value, slope = run(fresh("mlx_lm.tuner.losses"))
    assert log.faults == []
    stock = fresh("mlx_lm.tuner.losses")
    stock.can_run_metal = lambda: False
    want, want_slope = run(stock)
    near(value, want, 4)
    near(slope, want_slope, 4)
