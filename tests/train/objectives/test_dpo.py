"""DPO and its losses: loss and every gradient against TRL, and a reference that never moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.train.config import FinetuneConfig, PreferenceLoss
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.objectives.clm import Batch
from macllm.train.objectives.dpo import DPO
from macllm.train.objectives.pairs import Pair
from macllm.train.objectives.pairs import log_probabilities as log_probabilities_of
from tests.tables.gradients import ADAPTED, example
from tests.tables.twins import Difference
from tests.train.objectives.test_preferences import log_probabilities
from tests.train.objectives.trl_trainers import WithReference, of_same_type, padded

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parity]
# Short answers after longer prompts: log-ratios are differences of sums, whose rounding grows with their length.
BATCHES = {
    "unequal lengths": [
        (example(17, 11), example(15, 11)),
        (example(8, 6), example(23, 17)),
        (example(4, 2), example(3, 2)),
    ],
    "the same answer twice": [
        (example(12, 8), example(12, 8)),
        (example(6, 3), example(10, 3)),
        (example(19, 15), example(9, 7)),
    ],
    "answers of one token": [(example(7, 6), example(11, 10)), (example(2, 1), example(5, 4))],
    "one pair": [(example(15, 12), example(12, 9))],
    "token 0 in the text": [
        (example(14, 10, zeros=True), example(9, 6, zeros=True, seed=1)),
        (example(5, 1, zeros=True), example(21, 16, zeros=True)),
    ],
    "a masked answer": [(example(9, 9), example(12, 8)), (example(5, 2), example(13, 10))],
}
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {} for name in get_args(PreferenceLoss)},
    "robust": {"label_smoothing": 0.2, "beta": 0.15},
    "exo_pair": {"label_smoothing": 0.05},
    "sppo_hard": {"beta": 0.1},
    "discopop": {"beta": 0.02},  # its temperature magnifies the rounding of log-ratios
    "sigmoid_norm": {"beta": 1.0},
}


def dpo(loss: Any = "sigmoid", beta: float = 0.3, label_smoothing: float = 0.0) -> DPO:
    settings = {"preference_loss": loss, "beta": beta, "label_smoothing": label_smoothing}
    return DPO(FinetuneConfig(data="x", objective="dpo", **settings))


class Sides(WithReference):
    """A model of ours with its reference, and TRL's trainer of models with the same weights."""

    def __init__(self, folder: Path, adapter: str = "") -> None:
        super().__init__(folder, adapter)
        self.trl = self.trainer("dpo", folder / "trl")

    def theirs(self, objective: DPO, pairs: Sequence[tuple[Any, Any]]) -> Callable[[Any], Any]:
        """TRL's loss of a batch."""
        self.trl.loss_types, self.trl.loss_weights = [objective.config.preference_loss], [1.0]
        self.trl.beta, self.trl.label_smoothing = objective.beta, objective.smoothing
        batch = padded([row for side in zip(*pairs, strict=True) for row in side])

        def loss(oracle: Any) -> Any:
            with of_same_type(self.other_oracle, oracle):
                return self.trl._compute_loss(oracle, batch, False)

        return loss

    def ours(self, objective: DPO, pairs: Sequence[tuple[Any, Any]]) -> tuple[float, dict[str, mx.array]]:
        """Our mean loss and its gradients, the reference stored for a model and live for an adapter."""
        made = [Pair(*pair) for pair in pairs]
        if self.other is not None:
            made = prepared(objective, self.other, made)
        return step(self.twins.model, objective, made)

    def difference(self, objective: DPO, pairs: Sequence[tuple[Any, Any]]) -> Difference:
        return self.twins.difference(*self.ours(objective, pairs), self.theirs(objective, pairs))


def prepared(objective: Any, model: Any, pairs: list[Any]) -> list[Any]:
    """Examples with the log-probabilities of a reference."""
    config = replace(objective.config, reference="stored")
    work = type(objective)(config).prepare(model, Dataset(pairs, [], Counts()), None, "")
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value.train


def step(model: Any, objective: Any, examples: Sequence[Any]) -> tuple[float, dict[str, mx.array]]:
    """The mean loss of a batch, and its gradients."""
    batch = objective.collate(examples, np.random.default_rng(0))
    if hasattr(objective, "measured"):
        (batch,) = objective.measured(model, [batch], [batch])
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("adapted"), next(iter(ADAPTED)))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", SETTINGS)
def test_loss_and_every_gradient_of_a_whole_model_are_those_of_trl(loss: str, batch: str, full: Sides) -> None:
    difference = full.difference(dpo(loss, **SETTINGS[loss]), BATCHES[batch])
    assert difference.held, difference


@pytest.mark.parametrize("loss", SETTINGS)
def test_loss_and_every_gradient_of_an_adapter_are_those_of_trl(loss: str, adapted: Sides) -> None:
    difference = adapted.difference(dpo(loss, **SETTINGS[loss]), BATCHES["unequal lengths"])
    assert difference.held, difference


def test_smoothed_labels_are_conservative_dpo(full: Sides) -> None:
    from trl.experimental.cpo import CPOTrainer

    pairs, objective = BATCHES["unequal lengths"], dpo(label_smoothing=0.15)

    def loss(oracle: Any) -> Any:
        with of_same_type(full.other_oracle, oracle):
            ratios = [log_probabilities(oracle, rows, average=False) -
                      log_probabilities(full.other_oracle, rows, average=False).detach()
                      for rows in zip(*pairs, strict=True)]  # fmt: skip
        settings = SimpleNamespace(beta=0.3, loss_type="sigmoid", label_smoothing=0.15, alpha=0.0)
        settings.accelerator = SimpleNamespace(device="cpu")
        return CPOTrainer.cpo_loss(settings, *ratios)[0].mean()

    difference = full.twins.difference(*full.ours(objective, pairs), loss)
    assert difference.held, difference


def unshifted(batch: Batch) -> Batch:
    """The bug of a mask that is that of the token before each target."""
    weights = np.zeros_like(batch.weights)
    weights[:, 1:] = batch.weights[:, :-1]
    return replace(batch, weights=weights)


def with_prompts(batch: Batch) -> Batch:
    """The bug of prompts that are scored."""
    last = batch.weights.shape[1] - 1 - (batch.weights[:, ::-1] > 0).argmax(axis=1)
    return replace(batch, weights=(np.arange(batch.weights.shape[1]) <= last[:, None]).astype(np.float32))


@pytest.mark.parametrize("bug", [unshifted, with_prompts])
def test_a_wrong_mask_is_found(bug: Any, full: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "macllm.train.objectives.dpo.log_probabilities", lambda model, batch: log_probabilities_of(model, bug(batch))
    )
    assert not full.difference(dpo(), BATCHES["unequal lengths"]).held


def test_a_reference_that_moves_is_found(adapted: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm.nn.lora.disabled", lambda model: nullcontext())
    assert not adapted.difference(dpo(), BATCHES["unequal lengths"]).held


def test_a_mean_over_tokens_is_found(full: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    def means(model: Any, batch: Batch) -> Any:
        sums, counts = log_probabilities_of(model, batch)
        return sums / mx.maximum(counts, 1), counts

    monkeypatch.setattr("macllm.train.objectives.dpo.log_probabilities", means)
    assert not full.difference(dpo(), BATCHES["unequal lengths"]).held
