"""ORPO, SimPO, KTO and DPO against float64 in numpy: loss and the slopes of the log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macllm.train.config import FinetuneConfig
from macllm.train.objectives import clm
from macllm.train.objectives.dpo import DPO
from macllm.train.objectives.kto import KTO, Judged
from macllm.train.objectives.orpo import ORPO
from macllm.train.objectives.pairs import Pair, log_probabilities
from macllm.train.objectives.simpo import SimPO
from tests.tables.gradients import example

# Prompt and length of the better and the worse answer; the last pair has the same answer twice.
PAIRS = [
    Pair(example(17, 11), example(15, 11)),
    Pair(example(8, 7), example(23, 17)),
    Pair(example(2, 1), example(4, 3)),
    Pair(example(9, 5), example(9, 5)),
]


class Table(nn.Module):
    """A model whose logits are one table for all positions, so that slopes can be written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = mx.array(np.random.default_rng(3).normal(size=(67,)).astype(np.float32))

    def hidden(self, tokens: mx.array, **_: Any) -> mx.array:
        return mx.ones((*tokens.shape, 1))

    def logits(self, hidden: mx.array) -> mx.array:
        return hidden * self.table

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.logits(self.hidden(tokens))


def exact(
    table: np.ndarray, answers: Sequence[Any], loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[float, np.ndarray]:
    """A loss of the sums and lengths of answers, and its slope by the table, by differences in float64."""
    counts = np.array([each.loss_mask.sum() for each in answers], dtype=np.float64)

    def of(values: np.ndarray) -> float:
        log_p = values - np.log(np.exp(values).sum())
        sums = np.array([log_p[each.tokens[each.loss_mask]].sum() for each in answers])
        return float(loss(sums, counts).sum())

    steps = np.eye(len(table)) * 1e-5
    slopes = np.array([(of(table + step) - of(table - step)) / 2e-5 for step in steps])
    return of(table), slopes


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def orpo(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    chosen, rejected = np.split(sums / counts, 2)
    odds = [mean - np.log(1 - np.exp(mean)) for mean in (chosen, rejected)]
    return -chosen - 0.25 * np.log(sigmoid(odds[0] - odds[1]))


def simpo(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    chosen, rejected = np.split(sums / counts, 2)
    return -np.log(sigmoid(2.5 * (chosen - rejected) - 0.7))


def conservative(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    chosen, rejected = np.split(sums - REFERENCE[: len(sums)], 2)
    logits = 0.2 * (chosen - rejected)
    return -0.9 * np.log(sigmoid(logits)) - 0.1 * np.log(sigmoid(-logits))


def kto(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    margins = 0.2 * (sums - REFERENCE[: len(sums)] - DIVERGENCE)
    good = np.arange(len(sums)) < len(sums) / 2
    return np.where(good, 1.5 * (1 - sigmoid(margins)), 0.5 * (1 - sigmoid(-margins)))


REFERENCE = np.round(np.random.default_rng(5).normal(size=2 * len(PAIRS)) * 8 - 20, 3)
DIVERGENCE = 0.75
CASES = {
    "orpo": (ORPO(beta=0.25), orpo),
    "simpo": (SimPO(beta=2.5, gamma=0.7), simpo),
    "dpo": (DPO(FinetuneConfig(data="x", objective="dpo", beta=0.2, label_smoothing=0.1)), conservative),
    "kto": (
        KTO(FinetuneConfig(data="x", objective="kto", beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)),
        kto,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_slopes_are_those_of_float64(name: str) -> None:
    objective, formula = CASES[name]
    model, answers = Table(), [*(pair.chosen for pair in PAIRS), *(pair.rejected for pair in PAIRS)]
    if name == "kto":
        judged = [Judged(each, at < len(PAIRS), each, (REFERENCE[at], 0.0)) for at, each in enumerate(answers)]
        batch = objective.collate(judged, np.random.default_rng(0))
        batch = replace(batch, divergence=DIVERGENCE)
    else:
        pairs = [Pair(pair.chosen, pair.rejected, reference=(REFERENCE[at], REFERENCE[at + len(PAIRS)]))
                 for at, pair in enumerate(PAIRS)]  # fmt: skip
        batch = objective.collate(pairs, np.random.default_rng(0))
    (loss, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    wanted, slopes = exact(np.array(model.table, dtype=np.float64), answers, formula)
    assert units == len(answers) / (1 if name == "kto" else 2)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert np.abs(np.array(tree["table"]) - slopes).max() <= 5e-6 * np.abs(slopes).max()


def test_a_batch_counts_pairs_and_not_tokens_or_their_means() -> None:
    for objective in (CASES["orpo"][0], CASES["simpo"][0]):
        whole = objective.loss(Table(), objective.collate(PAIRS, np.random.default_rng(0)))
        parts = [objective.loss(Table(), objective.collate([pair], np.random.default_rng(0))) for pair in PAIRS]
        assert sum(part.denominator for part in parts) == whole.denominator == len(PAIRS)
        assert sum(part.numerator.item() for part in parts) == pytest.approx(whole.numerator.item(), rel=1e-6)


def test_the_same_answer_twice_is_a_tie_without_a_gradient() -> None:
    objective, model = CASES["simpo"][0], Table()
    batch = objective.collate(PAIRS[-1:], np.random.default_rng(0))
    (loss, _, metrics), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    assert loss.item() == pytest.approx(np.log(1 + np.exp(0.7)), rel=1e-6)
    assert (metrics["accuracy"].item(), metrics["margin"].item()) == (0.5, 0.0)
    assert float(mx.abs(tree["table"]).max()) < 1e-7


def unshifted(batch: clm.Batch) -> clm.Batch:
    """The batch with a mask that is not shifted: that of the token before each target."""
    weights = np.zeros_like(batch.weights)
    weights[:, 1:] = batch.weights[:, :-1]
    return replace(batch, weights=weights)


def with_prompts(batch: clm.Batch) -> clm.Batch:
    """The batch with its prompts scored."""
    last = batch.weights.shape[1] - 1 - (batch.weights[:, ::-1] > 0).argmax(axis=1)
    return replace(batch, weights=(np.arange(batch.weights.shape[1]) <= last[:, None]).astype(np.float32))


@pytest.mark.parametrize("bug", [unshifted, with_prompts])
@pytest.mark.parametrize("name", CASES)
def test_a_known_bug_in_the_mask_is_found(name: str, bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"macllm.train.objectives.{name}"
    monkeypatch.setattr(f"{module}.log_probabilities", lambda model, batch: log_probabilities(model, bug(batch)))
    with pytest.raises(AssertionError):
        test_loss_and_slopes_are_those_of_float64(name)


def test_a_wrong_sign_of_the_divergence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    collate = KTO.collate

    def turned(*arguments: Any) -> Any:
        batch = collate(*arguments)
        return replace(batch, reference=batch.reference - np.float32(2 * DIVERGENCE))

    monkeypatch.setattr(KTO, "collate", turned)
    with pytest.raises(AssertionError):
        test_loss_and_slopes_are_those_of_float64("kto")
