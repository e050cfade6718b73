"""Objectives on pairs: loss and every gradient against TRL, and float64 in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.train.objectives.orpo import ORPO, _log_odds
from macllm.train.objectives.pairs import Pair
from macllm.train.objectives.simpo import SimPO
from tests.tables.gradients import CASES, example, written
from tests.tables.twins import Twins

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = {
    "unequal lengths": [
        (example(17, 5), example(9, 5)),
        (example(8, 3), example(23, 3)),
        (example(4, 2), example(3, 2)),
    ],
    "the same answer twice": [
        (example(12, 4), example(12, 4)),
        (example(6, 2), example(10, 2)),
        (example(19, 7), example(9, 7)),
    ],
    "answers of one token": [(example(7, 6), example(11, 10)), (example(2, 1), example(5, 1))],
    "one pair": [(example(15, 3), example(12, 3))],
    "token 0 in the text": [
        (example(14, 3, zeros=True), example(9, 3, zeros=True, seed=1)),
        (example(5, 1, zeros=True), example(21, 1, zeros=True)),
    ],
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pairs")
    oracle = written(CASES["Llama, grouped queries"], folder / "base")
    yield Twins(load_model(folder / "base"), oracle, folder)
    torch.set_num_threads(threads)


def log_probabilities(oracle: Any, rows: Sequence[Any], average: bool) -> Any:
    """TRL's log-probabilities of the answers of rows, padded on the left."""
    import torch
    from trl.experimental.cpo import CPOTrainer

    longest = max(map(len, rows))
    tokens, labels, real = (np.full((len(rows), longest), fill) for fill in (0, -100, 0))
    for i, row in enumerate(rows):
        at = slice(longest - len(row), longest)
        tokens[i, at], labels[i, at], real[i, at] = row.tokens, np.where(row.loss_mask, row.tokens, -100), 1
    positions = np.maximum(0, real.cumsum(1) - 1)
    inputs = {"input_ids": tokens, "attention_mask": real, "position_ids": positions}
    logits = oracle(**{name: torch.tensor(value) for name, value in inputs.items()}, use_cache=False).logits
    return CPOTrainer.get_batch_logps(logits, torch.tensor(labels), average_log_prob=average)


def orpo(pairs: Sequence[tuple[Any, Any]]) -> Callable[[Any], Any]:
    from trl.experimental.orpo import ORPOTrainer

    def loss(oracle: Any) -> Any:
        better, worse = (log_probabilities(oracle, rows, average=True) for rows in zip(*pairs, strict=True))
        accelerator = SimpleNamespace(device="cpu")
        ratio = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.25, accelerator=accelerator), better, worse)[0]
        return (-better - ratio).mean()

    return loss


def simpo(pairs: Sequence[tuple[Any, Any]]) -> Callable[[Any], Any]:
    from trl.experimental.cpo import CPOTrainer

    def loss(oracle: Any) -> Any:
        better, worse = (log_probabilities(oracle, rows, average=True) for rows in zip(*pairs, strict=True))
        settings = SimpleNamespace(beta=1.0, simpo_gamma=0.7, loss_type="simpo", label_smoothing=0.0, alpha=0.0)
        settings.accelerator = SimpleNamespace(device="cpu")
        return CPOTrainer.cpo_loss(settings, better, worse)[0].mean()

    return loss


OBJECTIVES = {"orpo": (ORPO(beta=0.25), orpo), "simpo": (SimPO(beta=1.0, gamma=0.7), simpo)}


def step(model: nn.Module, objective: Any, pairs: Sequence[tuple[Any, Any]]) -> tuple[float, dict[str, mx.array]]:
    """The mean loss over pairs, and its gradients."""
    batch = objective.collate([Pair(*pair) for pair in pairs], np.random.default_rng(0))
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    assert units == len(pairs)
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


@pytest.mark.parity
@pytest.mark.parametrize("batch", PAIRS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_every_gradient_are_those_of_trl(name: str, batch: str, twins: Twins) -> None:
    objective, reference = OBJECTIVES[name]
    twins.model.train()
    difference = twins.difference(*step(twins.model, objective, PAIRS[batch]), reference(PAIRS[batch]))
    assert difference.held, difference


def test_log_odds_are_those_of_float64_at_both_ends() -> None:
    log_p = np.array([-1e-6, -1e-3, -0.1, -0.69, -0.6931472, -0.7, -2.0, -30.0, -200.0], dtype=np.float32)
    exact = log_p.astype(np.float64)
    ours = np.array(_log_odds(mx.array(log_p)))
    np.testing.assert_allclose(ours, exact - np.log(-np.expm1(exact)), rtol=3e-7, atol=1e-6)
    slopes = np.array(mx.grad(lambda x: _log_odds(x).sum())(mx.array(log_p)))
    np.testing.assert_allclose(slopes, 1 / -np.expm1(exact), rtol=1e-6)
    assert np.isfinite(np.array(_log_odds(mx.array([0.0, -1e-20])))).all()
