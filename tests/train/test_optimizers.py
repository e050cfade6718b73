"""Muon, Lion and first moments in 8 bits, beside independent computations."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.ops.eight_bits import BLOCK, packed, unpacked
from macllm.ops.polar import polar
from macllm.train import optim
from macllm.train.config import TrainConfig
from macllm.train.contract import Optimizer
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.snapshot import Snapshots
from tests.train.toy import ToyLM, arithmetic_rows

Named = dict[str, np.ndarray]

SHAPES = {
    "decoder.layers.0.mlp.up.weight": (24, 16),
    "decoder.layers.0.mlp.down.weight": (16, 24),
    "decoder.layers.0.moe.experts.weight": (3, 8, 16),
    "decoder.layers.0.norm.weight": (16,),
    "embedding.tokens.weight": (20, 16),
    "head.proj.weight": (20, 16),
}
HIDDEN = list(SHAPES)[:3]


def draw(random: np.random.Generator) -> Named:
    return {k: random.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}


@pytest.fixture
def start_and_20_gradients() -> tuple[Named, list[Named]]:
    random = np.random.default_rng(0)
    return draw(random), [draw(random) for _ in range(20)]


def run(optimizer: Optimizer, start: Named, gradients: list[Named], rate: float = 0.01, scale: float = 1.0) -> Named:
    weights = {k: mx.array(v) for k, v in start.items()}
    state = optimizer.init(weights)
    for found in gradients:
        arrays = {k: mx.array(v) for k, v in found.items()}
        weights, state = optimizer.update(weights, arrays, state, rate, mx.array(scale))
    return {k: np.array(v) for k, v in weights.items()}


def muon(weight_decay: float = 0.0, **more: Any) -> optim.Muon:
    return optim.Muon(0.95, weight_decay, optim.AdamW(0.9, 0.95, 1e-8, weight_decay), **more)


@pytest.mark.parametrize("shape", [(16, 16), (64, 24), (24, 64), (1, 9), (5, 1)])
def test_the_polar_factor_has_the_singular_vectors_of_the_svd_and_values_near_one(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).standard_normal(shape)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    inner = u.T @ np.array(polar(mx.array(x.astype(np.float32)))).astype(np.float64) @ vt.T
    values = np.diag(inner)
    assert np.abs(inner - np.diag(values)).max() < 2e-5
    large = s > 0.003 * np.linalg.norm(s)
    assert values[large].min() > 0.68
    assert values.max() < 1.14


def test_each_expert_has_a_polar_factor_of_its_own() -> None:
    stack = mx.random.normal((3, 8, 16), key=mx.random.key(0))
    for one, alone in zip(polar(stack), stack, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(polar(alone)), rtol=0, atol=1e-6)


def test_the_polar_factor_of_zero_is_zero() -> None:
    assert mx.array_equal(polar(mx.zeros((4, 6))), mx.zeros((4, 6)))


def newton_schulz(x: np.ndarray) -> np.ndarray:
    x = x / (np.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.swapaxes(-1, -2)
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def test_muon_equals_its_definition_in_float64(start_and_20_gradients) -> None:
    start, gradients = start_and_20_gradients
    got = run(muon(0.1), start, gradients, scale=0.5)
    for name in HIDDEN:
        w, mean = start[name].astype(np.float64), 0.0
        for found in gradients:
            g = found[name].astype(np.float64) * 0.5
            mean = 0.95 * mean + 0.05 * g
            step = newton_schulz(0.95 * mean + 0.05 * g)
            w = w * (1 - 0.01 * 0.1) - 0.01 * 0.2 * math.sqrt(max(w.shape[-2:])) * step
        np.testing.assert_allclose(got[name], w, rtol=0, atol=2e-6)


def test_muon_leaves_embeddings_the_head_and_norms_to_adamw(start_and_20_gradients) -> None:
    start, gradients = start_and_20_gradients
    optimizer = muon(0.1)
    got, other = run(optimizer, start, gradients), run(optimizer.others, start, gradients)
    for name in SHAPES:
        assert np.array_equal(got[name], other[name]) == (name not in HIDDEN), name
    state = optimizer.init({k: mx.array(v) for k, v in start.items()})
    assert list(state.slots["momentum"]) == HIDDEN
    assert set(state.slots["mean"]) == set(state.slots["square"]) == set(SHAPES) - set(HIDDEN)


@pytest.mark.parametrize("make", [muon, lambda wd: optim.Lion(0.9, 0.99, wd)], ids=["muon", "lion"])
def test_weight_decay_is_decoupled_from_gradients(make: Any, start_and_20_gradients) -> None:
    start, gradients = start_and_20_gradients
    with_decay, without = (run(make(decay), start, gradients[:1]) for decay in (0.1, 0.0))
    for name, weight in start.items():
        decayed = weight.ndim > 1 and "embedding" not in name
        lost = (without[name] - with_decay[name]).astype(np.float64)
        np.testing.assert_allclose(lost, 0.01 * 0.1 * decayed * weight.astype(np.float64), rtol=0, atol=5e-7)


@pytest.mark.parity
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_torch_up_to_its_iterations_in_bfloat16(start_and_20_gradients, weight_decay: float) -> None:
    import torch

    start, gradients = start_and_20_gradients
    got = run(muon(weight_decay), start, gradients)
    for name in HIDDEN[:2]:
        tensor = torch.nn.Parameter(torch.tensor(start[name].copy()))
        theirs = torch.optim.Muon([tensor], 0.01, weight_decay, 0.95, adjust_lr_fn="match_rms_adamw")
        for found in gradients:
            tensor.grad = torch.tensor(found[name])
            theirs.step()
        moved = np.abs(got[name] - start[name]).max()
        assert np.abs(got[name] - tensor.detach().numpy()).max() < 0.01 * moved


def test_lion_equals_its_definition_in_float64(start_and_20_gradients) -> None:
    start, gradients = start_and_20_gradients
    got = run(optim.Lion(0.9, 0.99, 0.1), start, gradients, scale=0.5)
    for name in SHAPES:
        w, mean = start[name].astype(np.float64), 0.0
        decay = 0.1 if w.ndim > 1 and "embedding" not in name else 0.0
        for found in gradients:
            g = found[name].astype(np.float64) * 0.5
            w = w - 0.01 * (np.sign(0.9 * mean + 0.1 * g) + decay * w)
            mean = 0.99 * mean + 0.01 * g
        np.testing.assert_allclose(got[name], w, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 100), (16, 16), (3, 5, 300), (1, 1)])
def test_eight_bits_err_by_little_of_the_largest_value_of_a_block(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal(shape) * 10.0 ** random.uniform(-6, 0, shape)).astype(np.float32)
    codes = packed(mx.array(x))
    assert codes.codes.dtype == mx.int8
    assert codes.codes.shape == shape
    flat, got = x.flatten(), np.array(unpacked(codes)).flatten()
    for first in range(0, flat.size, BLOCK):
        block = slice(first, first + BLOCK)
        top = np.abs(flat[block]).max()
        assert np.abs(got[block] - flat[block]).max() <= 0.012 * top
        large = np.abs(flat[block]) > 1e-4 * top  # relative error of half a step of the grid
        assert np.all(np.abs(got[block] / flat[block] - 1)[large] < 0.5)
        assert np.all(np.sign(got[block])[large] == np.sign(flat[block])[large])


def test_eight_bits_of_zeros_are_zeros_and_bits_survive_packing_again() -> None:
    assert mx.array_equal(unpacked(packed(mx.zeros((3, 300)))), mx.zeros((3, 300)))
    once = packed(mx.random.normal((4, 200), key=mx.random.key(0)))
    again = packed(unpacked(once))
    assert mx.array_equal(once.codes, again.codes)
    assert mx.array_equal(once.scales, again.scales)


def quadratic(optimizer: Optimizer, steps: int = 200) -> list[float]:
    """Losses of a badly conditioned least-squares problem with noisy gradients."""
    random = np.random.default_rng(0)
    curvature = mx.array((10.0 ** random.uniform(-2, 0, (32, 32))).astype(np.float32))
    weights = {"layers.0.w": mx.array(random.standard_normal((32, 32)).astype(np.float32))}
    state, losses = optimizer.init(weights), []
    for step in range(steps):
        w = weights["layers.0.w"]
        losses.append((curvature * w * w).sum().item())
        noise = mx.array(random.standard_normal((32, 32)).astype(np.float32)) * 0.1
        rate = 0.05 * (1 - step / steps)
        weights, state = optimizer.update(weights, {"layers.0.w": curvature * w + noise}, state, rate, mx.array(1.0))
    return losses


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_first_moment_in_eight_bits_follows_the_one_in_float32(name: str) -> None:
    def make(bits: int) -> Optimizer:
        moment = optim.FirstMoment(bits)
        if name == "adamw":
            return optim.AdamW(0.9, 0.95, 1e-8, 0.0, first_moment=moment)
        return optim.Lion(0.9, 0.99, 0.0, first_moment=moment)

    wide, narrow = quadratic(make(32)), quadratic(make(8))
    assert wide[-1] < 0.1 * wide[0]
    assert max(abs(a - b) for a, b in itertools.zip_longest(wide, narrow)) < 0.01 * wide[0]
    assert wide != narrow


def test_only_the_first_moment_of_matrices_is_in_eight_bits() -> None:
    weights = {k: mx.zeros(s) for k, s in SHAPES.items()}
    slots = optim.AdamW(0.9, 0.95, 1e-8, 0.0, first_moment=optim.FirstMoment(8)).init(weights).slots
    norm = "decoder.layers.0.norm.weight"
    assert {k for k, a in slots["mean"].items() if a.dtype == mx.int8} == set(SHAPES) - {norm}
    assert {a.dtype for a in slots["square"].values()} == {mx.float32}
    assert all(a.dtype == mx.float32 for a in slots["mean_scale"].values())
    assert slots["mean_scale"].keys() == SHAPES.keys() - {norm}


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": "muon", "weight_decay": 0.1, "adamw_rate": 3e-3},
    "lion": {"optimizer": "lion", "embedding_rate": 1e-3},
    "adamw, 8 bits": {"first_moment_bits": 8},
    "lion, 8 bits": {"optimizer": "lion", "first_moment_bits": 8, "momentum": 0.95},
}


@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_run_of_any_optimizer_resumes_bit_for_bit(tmp_path: Path, settings: dict[str, Any], stop: int) -> None:
    config = TrainConfig(data="x", iters=8, learning_rate=1e-2, save_every=1, steps_per_eval=0, **settings)
    rows = Dataset(arithmetic_rows(12), [], Counts())

    def train(folder: str, steps: int | None) -> dict[str, mx.array]:
        model = ToyLM(dropout=0.1)
        kept = Snapshots(tmp_path / folder, 2, config.reproducibility_fields())
        trainer = Trainer.of(model, CausalLM(), config, rows, kept)
        events = trainer.run()
        for _ in events:
            if trainer.state.step == steps:
                events.close()
        slots = {f"{slot} {k}": a for slot, named in trainer.state.optimizer.slots.items() for k, a in named.items()}
        return dict(tree_flatten(model.parameters())) | slots

    whole = train("whole", None)
    train("parts", stop)
    resumed = train("parts", None)
    assert resumed.keys() == whole.keys()
    assert all(mx.array_equal(resumed[k], whole[k]) for k in whole)
