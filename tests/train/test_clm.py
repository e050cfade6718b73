"""Causal objective against transformers: loss and all gradients, on padded rows with masked tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.checkpoint import load_model
from macllm.families.config import Config
from macllm.train.objectives.clm import CausalLM, collate, collate_packed
from macllm.train.render import Example
from macllm.weights.keymap import to_ours
from macllm.weights.safetensors import load_folder
from tests.families import oracles

DECODERS = [c for c in oracles.CASES if c.main and c.kind == "decoder"]
PACKED = [c for c in DECODERS if c.name in ("llama", "gpt2", "mistral", "gemma3_text", "llama4_text")]


def rows(vocab_size: int) -> list[Example]:
    """Rows of unequal lengths, one without supervised tokens, with token 0 among the real tokens."""
    random = np.random.default_rng(0)
    made = []
    for n, masked in ((17, 5), (2, 1), (11, 11), (23, 1), (9, 8)):
        loss_mask = np.arange(n) >= masked
        loss_mask[3:5] = False
        made.append(Example(random.integers(0, vocab_size, n).astype(np.int32), loss_mask, "here:1"))
    return made


@pytest.mark.parity
@pytest.mark.parametrize("case", DECODERS, ids=lambda c: c.name)
def test_loss_and_all_gradients_equal_transformers(case: oracles.Case, tmp_path: Path) -> None:
    import torch

    oracle = oracles.write(case, tmp_path)
    oracle.get_input_embeddings().padding_idx = None  # torch would keep the gradient of token 0 from its table
    some = rows(case.options["vocab_size"])
    longest = max(map(len, some))
    tokens, labels = np.zeros((len(some), longest), np.int64), np.full((len(some), longest), -100)
    for i, row in enumerate(some):
        tokens[i, : len(row)] = row.tokens
        labels[i, : len(row)][row.loss_mask] = row.tokens[row.loss_mask]
    real = torch.tensor([[t < len(row) for t in range(longest)] for row in some]).long()
    loss = oracle(torch.tensor(tokens), attention_mask=real, labels=torch.tensor(labels), use_cache=False).loss
    loss.backward()

    model = load_model(tmp_path)
    (total, weight, _), tree = nn.value_and_grad(model, lambda b: CausalLM().loss(model, b))(collate(some))
    assert weight == (labels[:, 1:] != -100).sum()
    assert total.item() / weight == pytest.approx(loss.item(), rel=2e-6)

    keymap = families.keys(Config(model.info.config, ()), "hf")
    ours = {name: g / weight for name, g in tree_flatten(tree)}
    theirs = to_ours(written_gradients(oracle, tmp_path / "gradients"), keymap)
    assert ours.keys() == theirs.keys()
    # A bias of the keys shifts all scores of a query alike: its gradient is 0, and both sides compute noise.
    noise = 1e-7 * max(float(mx.abs(g).max()) for g in theirs.values())
    for name, g in theirs.items():
        assert float(mx.abs(ours[name] - g).max()) <= 5e-5 * float(mx.abs(g).max()) + noise, name


@pytest.mark.parity
@pytest.mark.parametrize("case", PACKED, ids=lambda c: c.name)
def test_packed_rows_have_the_loss_and_gradients_of_transformers_on_each_row(
    case: oracles.Case, tmp_path: Path
) -> None:
    import torch

    oracle = oracles.write(case, tmp_path)
    oracle.get_input_embeddings().padding_idx = None
    some = [row for row in rows(case.options["vocab_size"]) if row.loss_mask.any()]
    total = 0.0
    for row in some:
        logits = oracle(torch.tensor(row.tokens[None].astype(np.int64)), use_cache=False).logits[0, :-1]
        targets = torch.tensor(np.where(row.loss_mask, row.tokens, -100)[1:].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        loss.backward()
        total += loss.item()

    model = load_model(tmp_path)
    packed = collate_packed([some[:3], some[3:]])
    (found, weight, _), tree = nn.value_and_grad(model, lambda b: CausalLM().loss(model, b))(packed)
    assert weight == sum(row.loss_mask.sum() for row in some)
    assert found.item() == pytest.approx(total, rel=2e-6)
    keymap = families.keys(Config(model.info.config, ()), "hf")
    ours, theirs = dict(tree_flatten(tree)), to_ours(written_gradients(oracle, tmp_path / "gradients"), keymap)
    assert ours.keys() == theirs.keys()
    noise = 1e-7 * max(float(mx.abs(g).max()) for g in theirs.values())
    for name, g in theirs.items():
        assert float(mx.abs(ours[name] - g).max()) <= 5e-5 * float(mx.abs(g).max()) + noise, name


def written_gradients(oracle: Any, folder: Path) -> dict[str, mx.array]:
    """The gradients under the checkpoint's names of their weights."""
    import torch

    with torch.no_grad():
        for weight in oracle.parameters():
            weight.copy_(weight.grad)
    oracle.save_pretrained(folder)
    return load_folder(folder)
