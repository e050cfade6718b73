"""Heads that classify against transformers: logits, saved checkpoints, and new heads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import UsageError
from macllm.families import labels
from tests.families.oracles import CASES, Case, batch, write

pytestmark = pytest.mark.parity

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
# the case of each family with a head, whose config the classes share
NAMES = ("bert", "roberta", "longformer", "big_bird", "big_bird-full", "llama", "mistral", "mixtral", "qwen2", "qwen3",
         "qwen3_moe", "gemma2", "gemma3_text", "phi3", "gpt2", "olmo2")  # fmt: skip


def _case(name: str, end: str) -> Case:
    base = next(case for case in CASES if case.name == name)
    stem = (
        base.model.replace("ForMaskedLM", "").replace("ForCausalLM", "").replace("LMHeadModel", "").replace("Model", "")
    )
    stem = "Gemma3Text" if stem == "Gemma3" else stem
    more = {"num_labels": 3, "classifier_dropout": 0.0}
    more |= {} if "pad_token_id" in base.options else {"pad_token_id": 0}
    return dataclasses.replace(base, model=stem + end, options={**base.options, **more})


HEADS = [
    _case(name, end)
    for end in (SEQUENCE, TOKEN)
    for name in NAMES
    if not (end == TOKEN and name in ("gemma3_text", "olmo2"))
]
every_head = pytest.mark.parametrize("case", HEADS, ids=lambda case: case.model)


def theirs(model: Any, tokens: np.ndarray, real: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))).logits.numpy()


def on_the_left(tokens: np.ndarray, lengths: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows padded on the left, and the mask of their tokens."""
    out = np.full_like(tokens, padding)
    for row, length in enumerate(lengths):
        out[row, tokens.shape[1] - length :] = tokens[row, :length]
    return out, np.arange(tokens.shape[1]) >= tokens.shape[1] - lengths[:, None]


def read_as_theirs(model: Any, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.array(model.label_logits(mx.array(tokens), mx.array(lengths)))


@every_head
def test_label_logits_equal_transformers_on_padded_rows(case: Case, tmp_path: Path) -> None:
    b, oracle = batch(case), write(case, tmp_path)
    model: Any = checkpoint.load_model(tmp_path)
    got, want = read_as_theirs(model, b.tokens, b.lengths), theirs(oracle, b.tokens, b.real)
    if got.ndim == 3:
        got, want = got[b.real], want[b.real]
    assert got.shape == want.shape
    assert want.std() > 0.1
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    assert model.info.kind == "encoder"
    assert labels.names(model.info.config) == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
def test_decoders_read_the_last_token_before_padding_on_either_side(name: str, tmp_path: Path) -> None:
    case = _case(name, SEQUENCE)
    b, oracle = batch(case), write(case, tmp_path)
    model: Any = checkpoint.load_model(tmp_path)
    padding = case.options["pad_token_id"]
    tokens = b.tokens.copy()
    tokens[0, case.length - 1] = padding  # a text that ends with the token that pads, as an end token may
    left, real = on_the_left(tokens, b.lengths, padding)
    got, right = read_as_theirs(model, tokens, b.lengths), theirs(oracle, tokens, b.real)
    assert np.abs(got - right).max() <= 2e-5 * np.abs(right).max()
    if name != "gpt2":  # whose positions count the padding
        assert np.abs(got - theirs(oracle, left, real)).max() <= 1e-4 * np.abs(right).max()
    alone = np.concatenate(
        [read_as_theirs(model, tokens[i : i + 1, :n], np.array([n])) for i, n in enumerate(b.lengths)]
    )
    assert np.abs(got - alone).max() <= 2e-5 * np.abs(right).max()


@every_head
def test_a_new_head_is_saved_as_transformers_reads_it(case: Case, tmp_path: Path) -> None:
    import transformers

    base = next(each for each in CASES if each.name == case.name)
    write(base, tmp_path / "base")
    model: Any = checkpoint.load_model(tmp_path / "base")
    task = "sequence" if case.model.endswith(SEQUENCE) else "token"
    labels.put_labels(model, task, ("bad", "good", "odd"), padding=0, seed=3)
    assert "head" not in model
    checkpoint.save(model, None, tmp_path / "ours")
    kind: Any = transformers.AutoModelForSequenceClassification if task == "sequence" else (
        transformers.AutoModelForTokenClassification
    )  # fmt: skip
    again, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True, attn_implementation="eager")
    assert type(again).__name__ == case.model
    assert not report["unexpected_keys"]
    assert not [name for name in report["missing_keys"] if "pooler" not in name]  # BigBird's class does not use its own
    assert again.config.id2label == {0: "bad", 1: "good", 2: "odd"}
    assert again.config.label2id == {"bad": 0, "good": 1, "odd": 2}
    b = batch(case)
    got, want = read_as_theirs(model, b.tokens, b.lengths), theirs(again.eval(), b.tokens, b.real)
    if got.ndim == 3:
        got, want = got[b.real], want[b.real]
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
    reloaded: Any = checkpoint.load_model(tmp_path / "ours")
    np.testing.assert_array_equal(
        read_as_theirs(reloaded, b.tokens, b.lengths), read_as_theirs(model, b.tokens, b.lengths)
    )


def test_a_family_without_such_a_head_is_refused(tmp_path: Path) -> None:
    write(next(case for case in CASES if case.name == "olmo2"), tmp_path)
    model: Any = checkpoint.load_model(tmp_path)
    with pytest.raises(UsageError, match="classifies words"):
        labels.put_labels(model, "token", ("a", "b"))
    with pytest.raises(UsageError, match="no head that classifies"):
        model.label_logits(mx.array([[1, 2]]))
    assert isinstance(model, nn.Module)
