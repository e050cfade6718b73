from __future__ import annotations

import math
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops import dispatch
from macllm.train import optim
from macllm.train.config import Schedule, TrainConfig

SHAPES = {"a.weight": (8, 16), "a.bias": (16,), "embedding.tokens.weight": (5, 3), "norm.weight": (1,)}


def arrays(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {k: random.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def run(
    adam: optim.AdamW, weights: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]], scale: float = 1.0
) -> dict[str, np.ndarray]:
    now = {k: mx.array(v) for k, v in weights.items()}
    state = adam.init(now)
    for i, g in enumerate(gradients):
        now, state = adam.update(now, {k: mx.array(v) for k, v in g.items()}, state, 0.01 / (i + 1), mx.array(scale))
    return {k: np.array(v) for k, v in now.items()}


@pytest.fixture
def weights_and_20_gradients() -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    random = np.random.default_rng(0)
    return arrays(random), [arrays(random) for _ in range(20)]


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_equals_its_definition_in_float64(weights_and_20_gradients, decay_all: bool) -> None:
    weights, gradients = weights_and_20_gradients
    got = run(optim.AdamW(0.9, 0.95, 1e-8, 0.1, decay_all), weights, gradients, scale=0.5)
    for name, w in weights.items():
        w = w.astype(np.float64)
        m, v = np.zeros_like(w), np.zeros_like(w)
        decay = 0.1 if decay_all or name == "a.weight" else 0.0
        for i, g in enumerate(gradients):
            rate, g = 0.01 / (i + 1), g[name] * 0.5
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            w = w * (1 - rate * decay)
            w -= rate * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-8)
        np.testing.assert_allclose(got[name], w, rtol=0, atol=1e-6)


def test_the_first_step_is_as_long_as_the_learning_rate(weights_and_20_gradients) -> None:
    weights, gradients = weights_and_20_gradients
    got = run(optim.AdamW(0.9, 0.999, 1e-8, 0.0), weights, gradients[:1])
    for name, w in weights.items():
        np.testing.assert_allclose(np.abs(got[name] - w), 0.01, atol=1e-6)


@pytest.mark.parity
def test_adamw_equals_torch(weights_and_20_gradients) -> None:
    import torch

    weights, gradients = weights_and_20_gradients
    got = run(optim.AdamW(0.9, 0.999, 1e-8, 0.1, decay_all=True), weights, gradients)
    tensors = {k: torch.nn.Parameter(torch.tensor(v.copy())) for k, v in weights.items()}
    adam = torch.optim.AdamW(tensors.values(), weight_decay=0.1)
    for i, g in enumerate(gradients):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(g[name])
        adam.param_groups[0]["lr"] = 0.01 / (i + 1)
        adam.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(got[name], tensor.detach().numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("most", [0.1, 1.0, 1e4])
def test_clipping_limits_the_norm_and_never_raises_it(weights_and_20_gradients, most: float) -> None:
    gradients = {k: mx.array(v) for k, v in weights_and_20_gradients[0].items()}
    true = math.sqrt(sum(float((v.astype(np.float64) ** 2).sum()) for v in weights_and_20_gradients[0].values()))
    norm = optim.global_norm(gradients)
    assert norm.item() == pytest.approx(true, rel=1e-6)
    after = true * optim.clip_factor(norm, most).item()
    assert after == pytest.approx(min(true, most), rel=1e-5)
    assert optim.clip_factor(norm, 0.0).item() == 1.0


@pytest.mark.parametrize("implementation", ["stock", "native"])
def test_the_norm_of_large_gradients_is_exact(implementation: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 700, 1000)).astype(np.float32)
    with dispatch.using(implementation):
        got = optim.global_norm({"experts": mx.array(values), "vector": mx.array(values[0, 0])}).item()
    true = math.sqrt((values.astype(np.float64) ** 2).sum() + (values[0, 0].astype(np.float64) ** 2).sum())
    assert got == pytest.approx(true, rel=2e-6)


@pytest.mark.parity
def test_clipping_equals_torch(weights_and_20_gradients) -> None:
    import torch

    gradients = {k: mx.array(v) for k, v in weights_and_20_gradients[0].items()}
    factor = optim.clip_factor(optim.global_norm(gradients), 1.0)
    tensors = {k: torch.nn.Parameter(torch.zeros(s)) for k, s in SHAPES.items()}
    for k, t in tensors.items():
        t.grad = torch.tensor(weights_and_20_gradients[0][k])
    torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
    for k, t in tensors.items():
        np.testing.assert_allclose(np.array(gradients[k] * factor), t.grad.numpy(), rtol=1e-6, atol=0)


def rates(schedule: str, steps: int, **settings: float) -> list[float]:
    config = TrainConfig(data="x", schedule=schedule, learning_rate=1.0, **settings)  # type: ignore[arg-type]
    return [optim.learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_schedule_rises_to_its_peak_and_falls_no_lower_than_its_floor(schedule: str, steps: int) -> None:
    got = rates(schedule, steps, warmup=0.1, min_lr_ratio=0.1)
    warm = math.ceil(0.1 * steps)
    assert all(0 < r <= 1.0 for r in got)
    assert got[:warm] == pytest.approx([(i + 1) / (warm + 1) for i in range(warm)])
    assert all(a >= b for a, b in zip(got[warm:], got[warm + 1 :], strict=False))
    if warm < steps:
        assert got[warm] == 1.0
    if schedule != "constant" and warm < steps - 1:
        assert got[-1] == 0.1


def test_a_schedule_with_given_ends_is_a_line_up_and_one_down() -> None:
    got = rates("linear", 12, warmup=0.25, warmup_init=0.4, decay_steps=6, min_lr_ratio=0.1)
    assert got == pytest.approx([*np.linspace(0.4, 1, 3), *np.linspace(1, 0.1, 7), 0.1, 0.1])
    assert rates("cosine", 5, warmup=0.0, decay_steps=8) == pytest.approx(rates("cosine", 9, warmup=0.0)[:5])
    assert rates("constant", 9, warmup=0.1, warmup_init=0.0)[:2] == [0.0, 1.0]


@pytest.mark.parametrize("share", [i / 100 for i in range(100)])
def test_warm_up_takes_its_share_of_the_steps_in_exact_arithmetic(share: float) -> None:
    got = rates("constant", 100, warmup=share)
    assert got.index(1.0) == round(share * 100)


def test_a_stable_phase_and_a_decay_that_meet_by_rounding_keep_one_step_at_the_peak() -> None:
    got = rates("wsd", 9, warmup=0.5, decay=0.5, min_lr_ratio=0.2)
    assert got[:5] == pytest.approx([(i + 1) / 6 for i in range(5)])
    assert got[5:] == pytest.approx([1.0, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2])


def test_schedules_equal_their_closed_forms() -> None:
    half = 50
    assert rates("constant", 101, warmup=0)[half] == 1.0
    assert rates("linear", 101, warmup=0, min_lr_ratio=0.2)[half] == pytest.approx(0.6)
    assert rates("cosine", 101, warmup=0, min_lr_ratio=0.2)[25] == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)))
    wsd = rates("wsd", 100, warmup=0, decay=0.2, min_lr_ratio=0.0)
    assert wsd[:80] == [1.0] * 80
    assert wsd[80:] == pytest.approx([1 - (i + 1) / 20 for i in range(20)])


@pytest.mark.parity
@pytest.mark.parametrize("steps", [9, 50])
def test_schedules_equal_transformers_one_step_later(steps: int) -> None:
    """transformers' first step has a rate of 0; ours begins with its second."""
    import torch
    import transformers

    warm = math.ceil(0.1 * steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = {
        "constant": transformers.get_constant_schedule_with_warmup(optimizer, warm + 1),
        "linear": transformers.get_linear_schedule_with_warmup(optimizer, warm + 1, steps),
        "cosine": transformers.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warm + 1, steps, min_lr_rate=0.1),
    }
    falling = math.ceil(0.2 * steps)
    phases: Any = {"num_decay_steps": falling, "num_training_steps": steps, "decay_type": "linear"}
    theirs["wsd"] = transformers.get_wsd_schedule(optimizer, warm + 1, **phases, min_lr_ratio=0.1)
    floors = {"constant": 0.1, "linear": 0.0, "cosine": 0.1, "wsd": 0.1}
    for name, schedule in theirs.items():
        got = rates(name, steps, warmup=0.1, min_lr_ratio=floors[name])
        expected = [schedule.lr_lambdas[0](i + 1) for i in range(steps)]
        first = warm if name == "wsd" else 0  # transformers' warm-up to wsd begins at the floor
        assert got[first:] == pytest.approx(expected[first:], rel=1e-9), name
