"""Objectives of heads: loss and every gradient against transformers and, for rewards, TRL."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.checkpoint import load_model
from macllm.train.objectives import reward as reward_module
from macllm.train.objectives.classify import Classify
from macllm.train.objectives.labelled import Labelled
from macllm.train.objectives.reward import RankedPair, Reward
from macllm.train.objectives.tag import Tag
from tests.families.oracles import Case
from tests.tables.gradients import GEMMA, SMALL, example, written
from tests.tables.twins import Twins

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parity]
LABELS, PADDING = ("a", "b", "c"), 0
ENCODER = {**SMALL, "type_vocab_size": 2, "num_labels": 3, "classifier_dropout": 0.0}
DECODER = {**SMALL, "num_labels": 3, "classifier_dropout": 0.0}
MODELS = {
    "Bert": ("BertConfig", ENCODER),
    "Roberta": ("RobertaConfig", ENCODER),
    "Llama": ("LlamaConfig", DECODER),
    "Qwen3": ("Qwen3Config", DECODER),
    "Gemma2": ("Gemma2Config", {**GEMMA, "num_labels": 3, "attn_logit_softcapping": None}),
}
NO_EFFECT = "k_proj.bias"  # without RoPE it shifts all scores of a query alike: its gradient is rounding alone


class HeadTwins(Twins):
    """Twins without gradients that are zero but for rounding."""

    def _written(self) -> dict[str, mx.array]:
        return {name: each for name, each in super()._written().items() if not name.endswith(NO_EFFECT)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_MADE: dict[tuple[str, str, int], HeadTwins] = {}


def twins(name: str, end: str, folder: Path, outputs: int = 3) -> HeadTwins:
    """A model with a head and its reference, made once."""
    if (name, end, outputs) not in _MADE:
        config, options = MODELS[name]
        case = Case(name.lower(), name + end, config, {**options, "num_labels": outputs})
        oracle = written(case, folder / "base")
        _MADE[name, end, outputs] = HeadTwins(load_model(folder / "base"), oracle, folder)
    return _MADE[name, end, outputs]


def step(model: nn.Module, objective: Any, examples: Sequence[Any]) -> tuple[float, dict[str, mx.array]]:
    """The mean loss, and its gradients."""
    model.train()
    batch = objective.collate(examples, np.random.default_rng(0))
    (total, units, _), tree = nn.value_and_grad(model, lambda: objective.loss(model, batch))()
    gradients = {name: gradient / units for name, gradient in tree_flatten(tree)}
    largest = max(float(mx.abs(each).max()) for each in gradients.values())
    for name in [name for name in gradients if name.endswith(NO_EFFECT)]:
        assert float(mx.abs(gradients.pop(name)).max()) < 1e-6 * largest
    return total.item() / units, gradients


def rectangle(rows: Sequence[np.ndarray], fill: int, side: str) -> np.ndarray:
    """Rows padded on one side."""
    out = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, each in zip(out, rows, strict=True):
        row[len(row) - len(each) :] = each if side == "left" else row[len(row) - len(each) :]
        if side == "right":
            row[: len(each)] = each
    return out


def inputs(rows: Sequence[np.ndarray], side: str) -> dict[str, Any]:
    """Tokens and attention mask for transformers."""
    import torch

    real = rectangle([np.ones(len(row)) for row in rows], 0, side)
    return {"input_ids": torch.tensor(rectangle(rows, PADDING, side)), "attention_mask": torch.tensor(real)}


def classified(examples: Sequence[Labelled], side: str) -> Callable[[Any], Any]:
    """The loss of transformers for labels of texts, padded on one side."""
    import torch

    labels = torch.tensor([int(each.labels[0]) for each in examples])
    return lambda oracle: oracle(**inputs([each.tokens for each in examples], side), labels=labels).loss


def tagged(examples: Sequence[Labelled], side: str) -> Callable[[Any], Any]:
    """The loss of transformers for labels of tokens, padded on one side."""
    import torch

    labels = [np.full(len(each), -100) for each in examples]
    for row, each in zip(labels, examples, strict=True):
        row[each.places] = each.labels
    padded = torch.tensor(rectangle(labels, -100, side))
    return lambda oracle: oracle(**inputs([each.tokens for each in examples], side), labels=padded).loss


def ranked(examples: Sequence[RankedPair], side: str, centering: float) -> Callable[[Any], Any]:
    """The loss of TRL for pairs, padded on one side."""
    import torch
    from trl import RewardTrainer

    compute: Callable[..., Any] = RewardTrainer.compute_loss
    rows = [*(each.chosen.tokens for each in examples), *(each.rejected.tokens for each in examples)]

    def loss(oracle: Any) -> Any:
        given = inputs(rows, side) | {"margin": torch.tensor([each.margin for each in examples])}
        arguments = SimpleNamespace(center_rewards_coefficient=centering or None)
        trainer = SimpleNamespace(model=SimpleNamespace(training=False), args=arguments, _total_train_tokens=0)
        trainer._metrics = defaultdict(lambda: defaultdict(list))
        trainer.accelerator = SimpleNamespace(gather=lambda each: each, gather_for_metrics=lambda each: each)
        return compute(trainer, lambda margin, **rest: oracle(**rest), given)

    return loss


def text(length: int, label: int, *, seed: int = 0, ends_padded: bool = False) -> Labelled:
    """A text with a label; with `ends_padded` its last two tokens are that which pads."""
    tokens = np.random.default_rng((seed, length)).integers(3, 67, length).astype(np.int32)
    tokens[length - 2 :] = PADDING if ends_padded else tokens[length - 2 :]
    return Labelled(tokens, np.array([label], np.int32), "here:1")


TEXTS = {
    "unequal lengths": [text(17, 2), text(4, 0), text(11, 1), text(23, 2, seed=1)],
    "a text of one token": [text(1, 1), text(9, 0)],
    "one label only": [text(8, 1), text(12, 1), text(5, 1)],
    "the same text with two labels": [text(13, 0), text(13, 2)],
    "one text": [text(19, 2)],
}
# decoders alone: RoBERTa takes positions from what is not padding
PADDED_TEXTS = {
    "texts that end with the padding token": [text(14, 1, ends_padded=True), text(21, 0), text(2, 2, ends_padded=True)],
}


CLASSIFIED = [
    (name, side, batch)
    for name, side in (("Bert", "right"), ("Roberta", "right"), ("Llama", "right"), ("Llama", "left"),
                       ("Qwen3", "left"), ("Gemma2", "right"))
    for batch in (TEXTS if name in ("Bert", "Roberta") else {**TEXTS, **PADDED_TEXTS})
]  # fmt: skip


@pytest.mark.parametrize(("name", "side", "batch"), CLASSIFIED)
def test_classification_has_the_loss_and_gradients_of_transformers(
    name: str, side: str, batch: str, tmp_path: Path
) -> None:
    pair = twins(name, "ForSequenceClassification", tmp_path)
    examples = {**TEXTS, **PADDED_TEXTS}[batch]
    difference = pair.difference(*step(pair.model, Classify(LABELS), examples), classified(examples, side))
    assert difference.held, difference


def words(length: int, places: Sequence[int], *, seed: int = 0) -> Labelled:
    """A text with labels at some places."""
    random = np.random.default_rng((seed, length))
    tokens = random.integers(3, 67, length).astype(np.int32)
    labels = random.integers(0, 3, len(places)).astype(np.int32)
    return Labelled(tokens, labels, "here:1", np.array(places, np.int32))


WORDS = {
    "unequal lengths": [words(15, [1, 3, 4, 9]), words(4, [1]), words(22, [1, 2, 3, 5, 8, 13, 20])],
    "a row without labels": [words(12, []), words(7, [0, 6])],
    "a row of one token": [words(1, [0]), words(9, [2, 3])],
    "one row": [words(18, [1, 17])],
}


@pytest.mark.parametrize("batch", WORDS)
@pytest.mark.parametrize(("name", "side"), [("Bert", "right"), ("Roberta", "left"), ("Llama", "left")])
def test_tagging_has_the_loss_and_gradients_of_transformers(name: str, side: str, batch: str, tmp_path: Path) -> None:
    pair = twins(name, "ForTokenClassification", tmp_path)
    examples = WORDS[batch]
    difference = pair.difference(*step(pair.model, Tag(LABELS), examples), tagged(examples, side))
    assert difference.held, difference


def pairs_of(*lengths: tuple[int, int], margins: Sequence[float] = (), same: bool = False) -> list[RankedPair]:
    """Pairs of answers of these lengths."""
    made = [(example(a, 1), example(b, 1, seed=0 if same else 1)) for a, b in lengths]
    given = margins or [0.0] * len(made)
    return [RankedPair(*both, margin=margin) for both, margin in zip(made, given, strict=True)]


PAIRS = {
    "unequal lengths": pairs_of((17, 9), (4, 23), (12, 12)),
    "margins": pairs_of((17, 9), (4, 23), (12, 12), margins=(0.5, 2.0, 0.0)),
    "chosen equals rejected beside others": [
        *pairs_of((8, 8), (14, 14), margins=(0.0, 0.5), same=True),
        *pairs_of((5, 20), margins=(1.0,)),
    ],
    "answers of one token": pairs_of((1, 1), (1, 6)),
}


@pytest.mark.parametrize("batch", PAIRS)
@pytest.mark.parametrize("centering", [0.0, 0.01])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rewards_have_the_loss_and_gradients_of_trl(side: str, centering: float, batch: str, tmp_path: Path) -> None:
    pair = twins("Llama", "ForSequenceClassification", tmp_path, outputs=1)
    examples = PAIRS[batch]
    difference = pair.difference(*step(pair.model, Reward(centering), examples), ranked(examples, side, centering))
    assert difference.held, difference


def test_a_pair_of_equal_answers_has_the_loss_of_a_tie_and_no_gradient(tmp_path: Path) -> None:
    model = twins("Llama", "ForSequenceClassification", tmp_path, outputs=1).model
    loss, gradients = step(model, Reward(), pairs_of((9, 9), same=True))
    _, ordinary = step(model, Reward(), pairs_of((9, 9)))
    assert abs(loss - np.log(2)) < 1e-6
    for name, gradient in gradients.items():
        assert float(mx.abs(gradient).max()) <= 1e-6 * float(mx.abs(ordinary[name]).max()), name


# Known bugs: a text of the loss, and what stands there instead.
MUTANTS = {
    "a margin with the wrong sign": ("- mx.array(batch.margins)", "+ mx.array(batch.margins)"),
    "a margin that is not read": (" - mx.array(batch.margins)", ""),
    "centring of the difference": ("chosen + rejected", "chosen - rejected"),
    "the worse answer preferred": ("chosen, rejected = halves(rewards)", "rejected, chosen = halves(rewards)"),
}


def padding_read(tokens: mx.array, lengths: mx.array, padding: int) -> mx.array:
    """The last place of a row, padding or not."""
    return mx.full((len(tokens),), tokens.shape[1] - 1)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_known_bug_of_rewards_is_seen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, names = textwrap.dedent(inspect.getsource(Reward.loss)), dict(vars(reward_module))
    assert source.count(MUTANTS[name][0]) == 1
    exec(source.replace(*MUTANTS[name]), names)
    monkeypatch.setattr(Reward, "loss", names["loss"])
    pair, examples = twins("Llama", "ForSequenceClassification", tmp_path, outputs=1), PAIRS["margins"]
    assert not pair.difference(*step(pair.model, Reward(0.01), examples), ranked(examples, "right", 0.01)).held


def test_a_reward_read_at_the_padding_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm.nn.labels.last_tokens", padding_read)
    pair, examples = twins("Llama", "ForSequenceClassification", tmp_path, outputs=1), PAIRS["unequal lengths"]
    assert not pair.difference(*step(pair.model, Reward(), examples), ranked(examples, "right", 0.0)).held


def test_a_classification_read_at_the_padding_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macllm.nn.labels.last_tokens", padding_read)
    pair, examples = twins("Llama", "ForSequenceClassification", tmp_path), TEXTS["unequal lengths"]
    assert not pair.difference(*step(pair.model, Classify(LABELS), examples), classified(examples, "right")).held


def test_tagging_of_shifted_tokens_is_seen(tmp_path: Path) -> None:
    pair, examples = twins("Llama", "ForTokenClassification", tmp_path), WORDS["one row"]
    shifted = [dataclasses.replace(each, places=each.places - 1) for each in examples]
    assert not pair.difference(*step(pair.model, Tag(LABELS), shifted), tagged(examples, "right")).held
