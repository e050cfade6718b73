"""Heads that classify: the token that is read, putting one on a model, labels of rows, and metrics."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm.errors import CheckpointError, DoesNotFitError, UsageError
from macllm.families import labels
from macllm.nn.info import ModelInfo
from macllm.nn.labels import last_tokens
from macllm.nn.spec import LabelSpec
from macllm.train.objectives.labelled import Labelled, closing, collate_labelled, label_loss, summary
from macllm.train.rows import label_name
from tests.train.toy import random_llama


@pytest.mark.parametrize(
    ("row", "length", "padding", "place"),
    [
        ([5, 6, 7, 0, 0], 3, None, 2),
        ([5, 6, 7, 0, 0], 3, 0, 2),
        ([5, 6, 0, 0, 0], 3, 0, 1),  # the text ends with the token that pads
        ([0, 6, 0, 8, 0], 4, 0, 3),
        ([0, 0, 0, 0, 0], 3, 0, 0),  # nothing but padding
        ([5, 0, 0, 0, 0], 1, None, 0),
    ],
)
def test_the_last_token_is_the_last_one_that_is_no_padding(
    row: list[int], length: int, padding: int | None, place: int
) -> None:
    tokens = mx.array([row, [1] * len(row)])
    assert last_tokens(tokens, mx.array([length, 5]), padding).tolist() == [place, 4]
    if padding == 0:
        assert last_tokens(tokens, None, padding).tolist() == [max(np.flatnonzero(row), default=0), 4]


def test_a_new_head_takes_the_place_of_the_language_model_head_and_leaves_the_rest() -> None:
    model: Any = random_llama(pad_token_id=0)
    tokens = mx.array([[3, 4, 5, 6], [7, 8, 0, 0]])
    hidden = np.array(model.hidden(tokens))
    labels.put_labels(model, "sequence", ("a", "b"), seed=5)
    np.testing.assert_array_equal(np.array(model.hidden(tokens)), hidden)
    got = np.array(model.label_logits(tokens, mx.array([4, 2])))
    want = hidden[[0, 1], [3, 1]] @ np.array(model.labels.proj.weight).T
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert model.info.kind == "encoder"
    assert not model.info.packs
    again: Any = random_llama(pad_token_id=0)
    labels.put_labels(again, "sequence", ("a", "b"), seed=5)
    assert bool(mx.array_equal(again.labels.proj.weight, model.labels.proj.weight))
    labels.put_labels(model, "token", ("x", "y", "z"))
    assert model.label_logits(tokens).shape == (2, 4, 3)
    assert model.info.config["id2label"] == {"0": "x", "1": "y", "2": "z"}


def test_names_of_labels_are_those_of_the_config() -> None:
    assert labels.names({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert labels.names({}) == ("LABEL_0", "LABEL_1")
    assert labels.names({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    with pytest.raises(CheckpointError, match="id2label"):
        labels.names({"id2label": {"2": "b", "0": "a"}})
    assert [label_name(each) for each in ("a", 3, True)] == ["a", "3", "true"]


class Scores:
    """A model whose label logits are one-hot vectors of the tokens."""

    def __init__(self, *, over_tokens: bool = False, **config: Any) -> None:
        spec = LabelSpec(count=4, reads="each" if over_tokens else "last")
        self.info = ModelInfo(
            kind="encoder", labels=spec, context_length=9, config={"num_labels": 4, **config}, vocab_size=99
        )

    def label_logits(self, tokens: mx.array, lengths: mx.array | None = None) -> mx.array:
        """Twice the one-hot vectors, of all tokens or of the last."""
        assert lengths is not None
        each = 2.0 * mx.eye(4)[tokens % 4]
        return each if self.info.labels.reads == "each" else each[mx.arange(len(tokens)), lengths - 1]


class Digits:
    """A tokenizer of digits, one token each."""

    vocab_size = 10

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(letter) for letter in text if letter.isdigit()]

    def offsets(self, text: str, add_special_tokens: bool = True) -> Any:
        places = [at for at, letter in enumerate(text) if letter.isdigit()]
        return [int(text[at]) for at in places], [(at, at + 1) for at in places]


def test_texts_are_classified_in_order_whatever_their_lengths() -> None:
    texts = ["123", "0", "3332", "21", "11110"]
    found = macllm.classify(Scores(), Digits(), texts, batch_size=2)
    assert [each.label for each in found] == ["LABEL_3", "LABEL_0", "LABEL_2", "LABEL_1", "LABEL_0"]
    share = np.exp(2) / (np.exp(2) + 3)
    assert all(
        abs(each.probability - share) < 1e-6 and abs(sum(each.probabilities.values()) - 1) < 1e-12 for each in found
    )
    alone = macllm.classify(Scores(problem_type="multi_label_classification"), Digits(), ["1"])[0]
    assert abs(alone.probability - 1 / (1 + np.exp(-2))) < 1e-6
    assert macllm.classify(Scores(), Digits(), []) == []
    with pytest.raises(DoesNotFitError, match="text 1 has 10 tokens"):
        macllm.classify(Scores(), Digits(), ["1", "1" * 10])
    with pytest.raises(UsageError, match="text 0 is empty"):
        macllm.classify(Scores(), Digits(), [""])
    with pytest.raises(UsageError, match="classifies words"):
        macllm.tag(Scores(), Digits(), [["1"]])


def test_words_are_labelled_by_their_first_token() -> None:
    found = macllm.tag(Scores(over_tokens=True), Digits(), [["12", "x", "30"], ["2"]])
    assert [[each and each.label for each in row] for row in found] == [["LABEL_1", None, "LABEL_3"], ["LABEL_2"]]


def text(label: int, *tokens: int, closing: int = 1) -> Labelled:
    return Labelled(np.array(tokens, np.int32), np.array([label], np.int32), "here:1", closing=closing)


def test_a_cut_text_keeps_its_closing_tokens_and_words_their_labels() -> None:
    assert text(0, 1, 5, 6, 7, 2).cut(0, 3).tokens.tolist() == [1, 5, 2]
    assert text(0, 1, 5, 6, 7, 2).cut(0, 9).tokens.tolist() == [1, 5, 6, 7, 2]
    assert text(0, 1, 5, 6, 7, closing=0).cut(0, 2).tokens.tolist() == [1, 5]
    row = Labelled(np.arange(6, dtype=np.int32), np.array([1, 0, 1]), "here:1", np.array([1, 2, 4]), closing=1)
    cut = row.cut(0, 4)
    assert (cut.tokens.tolist(), cut.labels.tolist(), cut.places.tolist()) == ([0, 1, 2, 5], [1, 0], [1, 2])
    assert cut.num_target_tokens == 2
    assert closing([1, 7, 8, 2, 3], [7, 8]) == 2
    assert closing([7, 8], [9]) == 0
    assert text(0, 1, 2).fingerprint() != text(1, 1, 2).fingerprint()


@pytest.mark.parametrize("outside", [None, 0])
def test_f1_is_that_of_its_definition(outside: int | None) -> None:
    random = np.random.default_rng(3)
    rows = [text(int(label), *random.integers(1, 9, 3)) for label in random.integers(0, 4, 60)]
    actual = np.array([int(row.labels[0]) for row in rows])
    predicted = np.array([int(row.tokens[-1]) % 4 for row in rows])
    loss = label_loss(Scores(), collate_labelled(rows))
    found = summary({name: value.item() / loss.denominator for name, value in loss.metrics.items()}, outside)
    assert abs(found["accuracy"] - (actual == predicted).mean()) < 1e-6
    groups = [[label] for label in range(4)] if outside is None else [[1, 2, 3]]
    scores = []
    for group in groups:
        right = ((actual == predicted) & np.isin(actual, group)).sum()
        scores.append(2 * right / (np.isin(actual, group).sum() + np.isin(predicted, group).sum()))
    assert abs(found["f1"] - np.mean(scores)) < 1e-6
    assert found.keys() == {"accuracy", "f1"}
