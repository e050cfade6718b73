"""Masked LM and text to text: loss and every gradient against transformers on identical batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.train.objectives.infill import infilled
from macllm.train.objectives.mlm import MaskedBatch, MaskedLM
from macllm.train.objectives.seq2seq import TextToText, TextToTextBatch
from macllm.train.objectives.texts import padded
from tests.families import oracles
from tests.tables.twins import Twins

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
CASES = {case.name: case for case in oracles.CASES}
LENGTHS = (17, 1, 9, 23, 6)
VOCAB = 83  # of the smallest table


@pytest.fixture(scope="module")
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("twins")
    oracle = oracles.write(CASES[request.param], folder / "base")
    with torch.no_grad():  # saturated scores have gradients near the rounding of float32
        for name, weight in oracle.named_parameters():
            weight.mul_(0.5 if weight.ndim > 1 and "embed" not in name and "shared" not in name else 1.0)
    oracle.save_pretrained(folder / "base")
    for module in oracle.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # its token would get no gradient from the table
    if (bias := getattr(oracle, "final_logits_bias", None)) is not None:  # a constant there, a weight here
        del oracle.final_logits_bias
        oracle.final_logits_bias = torch.nn.Parameter(bias)
    yield Twins(load_model(folder / "base"), oracle, folder)
    torch.set_num_threads(threads)


def tokens(length: int, seed: int = 0) -> np.ndarray:
    """Random tokens, some of them 0."""
    random = np.random.default_rng((seed, length))
    return np.where(random.random(length) < 0.2, 0, random.integers(0, VOCAB, length)).astype(np.int32)


def masked_batch() -> MaskedBatch:
    """Rows of unequal lengths, one of a single token, one without a predicted token, one with all."""
    targets, lengths = padded([tokens(length) for length in LENGTHS])
    chosen = np.random.default_rng(1).random(targets.shape) < 0.3
    chosen &= np.arange(targets.shape[1]) < lengths[:, None]
    chosen[1, 0], chosen[2], chosen[4, :6] = True, False, True
    return MaskedBatch(np.where(chosen, 5, targets).astype(np.int32), lengths, targets, chosen)


def text_to_text_batch() -> TextToTextBatch:
    """Corrupted sources, also of one token; targets of one token, and of none."""
    texts = [tokens(length, seed=1) for length in LENGTHS]
    sources = [infilled(text, 3, 0.3, 3.0, np.random.default_rng(0)) for text in texts]
    return TextToTextBatch.of(sources, [*texts[:3], texts[3][:1], texts[4][:0]])


def step(model: nn.Module, objective: Any, batch: Any) -> tuple[float, dict[str, mx.array]]:
    """The mean loss, and its gradients."""
    model.train()
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    assert units == batch.num_target_tokens
    return total.item() / units, {name: gradient / units for name, gradient in tree_flatten(tree)}


def moved(array: np.ndarray, lengths: np.ndarray, fill: int) -> np.ndarray:
    """Rows padded with `fill` on the left instead."""
    made = np.full(array.shape, fill, dtype=np.int64)
    for i, length in enumerate(lengths):
        made[i, array.shape[1] - length :] = array[i, :length]
    return made


def of_masked(batch: MaskedBatch, first: int, left: bool) -> Callable[[Any], Any]:
    """transformers' loss; `first` is the number of the first position."""
    import torch

    labels = np.where(batch.chosen, batch.targets, -100)
    real = (np.arange(labels.shape[1]) < batch.lengths[:, None]).astype(np.int64)
    inputs = batch.inputs.astype(np.int64)
    if left:
        inputs, labels, real = (moved(a, batch.lengths, f) for a, f in ((inputs, 7), (labels, -100), (real, 0)))
    positions = first + np.maximum(0, real.cumsum(1) - 1)
    given = {"input_ids": inputs, "attention_mask": real, "position_ids": positions, "labels": labels.astype(np.int64)}
    return lambda oracle: oracle(**{name: torch.tensor(value) for name, value in given.items()}).loss


def of_pairs(batch: TextToTextBatch, left: bool, smoothing: float = 0.0) -> Callable[[Any], Any]:
    """transformers' loss, or torch's of its logits with label smoothing."""
    import torch

    real = (np.arange(batch.sources.shape[1]) < batch.source_lengths[:, None]).astype(np.int64)
    kept = np.arange(batch.targets.shape[1]) < batch.target_lengths[:, None]
    sources, labels = batch.sources.astype(np.int64), torch.tensor(np.where(kept, batch.targets, -100)).long()
    if left:
        sources, real = (moved(array, batch.source_lengths, fill) for array, fill in ((sources, 7), (real, 0)))
    given = {"input_ids": torch.tensor(sources), "attention_mask": torch.tensor(real), "labels": labels}

    def loss(oracle: Any) -> Any:
        made = oracle(**given, use_cache=False)
        if not smoothing:
            return made.loss
        return torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(made.logits.flatten(0, 1), labels.flatten())

    return loss


@pytest.mark.parametrize(("twins", "first"), [("bert", 0), ("roberta", 2)], indirect=["twins"])
@pytest.mark.parametrize("left", [False, True], ids=["right padding", "left padding"])
def test_masked_lm_has_the_loss_and_gradients_of_transformers(twins: Twins, first: int, left: bool) -> None:
    batch = masked_batch()
    difference = twins.difference(*step(twins.model, MaskedLM(5, VOCAB), batch), of_masked(batch, first, left))
    assert difference.held, difference


ENCODER_DECODERS = ["t5", "t5-v1.1", "bart", "marian", "marian-two-tables"]


@pytest.mark.parametrize("twins", ENCODER_DECODERS, indirect=True)
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
def test_text_to_text_has_the_loss_and_gradients_of_transformers(twins: Twins, smoothing: float) -> None:
    batch, left = text_to_text_batch(), twins.model.info.position_count is None  # the others count their padding
    difference = twins.difference(*step(twins.model, TextToText(smoothing), batch), of_pairs(batch, left, smoothing))
    assert difference.held, difference


@pytest.mark.parametrize("twins", ["t5"], indirect=True)
def test_evaluation_is_without_label_smoothing(twins: Twins) -> None:
    batch, twins.model = text_to_text_batch(), twins.model.eval()
    smoothed, plain = (TextToText(e).loss(twins.model, batch).numerator.item() for e in (0.1, 0.0))
    assert smoothed == plain
