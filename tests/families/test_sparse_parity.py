"""Longformer and BigBird beyond their windows: global tokens, random blocks, default configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint, families
from macllm.families.config import Config
from macllm.ops.cross_entropy import cross_entropy
from macllm.weights.keymap import to_theirs
from tests.families.oracles import CASES, ENCODER, LONGFORMER, Batch, Case, batch, write

pytestmark = pytest.mark.parity

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LONG = {**ENCODER, **NO_DROPOUT, "num_attention_heads": 2, "num_hidden_layers": 2}
LONGFORMER_CASE = next(case for case in CASES if case.name == "longformer")


def big_bird(length: int, **options: Any) -> Case:
    return Case("big_bird", "BigBirdForMaskedLM", "BigBirdConfig", {**LONG, **options}, length)


def global_mask(b: Batch, kind: str) -> np.ndarray:
    """Mask of the global tokens: (B, L) bool."""
    mask = np.zeros(b.tokens.shape, bool)
    match kind:
        case "first":
            mask[:, 0] = True
        case "unequal":
            mask[0, [0, 3, 4, 30, 44]] = mask[2, 17] = True
        case "padding":
            mask[:, [0, 41]] = True  # padding in the shorter rows
        case "all":
            mask[:] = True
    return mask


def theirs(model: Any, b: Batch, chosen: np.ndarray | None = None) -> Any:
    import torch

    more = {} if chosen is None else {"global_attention_mask": torch.tensor(chosen.astype(int))}
    return model(torch.tensor(b.tokens), attention_mask=torch.tensor(b.real.astype(int)), **more).logits


def ours(model: Any, b: Batch, chosen: np.ndarray | None = None) -> mx.array:
    more = {} if chosen is None else {"global_tokens": mx.array(chosen)}
    return model.logits(model(mx.array(b.tokens), lengths=mx.array(b.lengths), **more))


def relative(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def gradient_errors(model: Any, reference: Any, b: Batch, chosen: np.ndarray | None = None) -> dict[str, float]:
    """The largest difference of each parameter's gradient over its largest value."""
    import torch

    targets = np.random.default_rng(5).integers(3, 80, b.tokens.shape)
    logits = theirs(reference, b, chosen)[torch.tensor(b.real)]
    torch.nn.functional.cross_entropy(logits, torch.tensor(targets[b.real])).backward()

    def mean_loss(model: nn.Module) -> mx.array:
        each = cross_entropy(ours(model, b, chosen), mx.array(targets))
        return (each * mx.array(b.real)).sum() / b.real.sum()

    gradients = nn.value_and_grad(model, mean_loss)(model)[1]
    mine = to_theirs(dict(tree_flatten(gradients)), families.keys(Config(model.info.config, ())))
    want = {name: p.grad.numpy() for name, p in reference.named_parameters() if p.grad is not None}
    # A bias of the keys shifts all scores of a query alike: its gradient is zero up to rounding.
    kept = {name: part for name, part in want.items() if not name.endswith(("key.bias", "key_global.bias"))}
    return {name: relative(np.array(mine[name]), part) for name, part in kept.items()}


@pytest.mark.parametrize("kind", ["none", "first", "unequal", "padding", "all"])
def test_logits_with_global_tokens_equal_transformers(kind: str, tmp_path: Path) -> None:
    b = batch(LONGFORMER_CASE)
    chosen = global_mask(b, kind)
    reference = write(LONGFORMER_CASE, tmp_path)
    want = theirs(reference, b, chosen).detach().numpy()[b.real]
    model = checkpoint.load_model(tmp_path)
    assert relative(np.array(ours(model, b, chosen))[b.real], want) <= 2e-5
    if kind != "none":
        assert relative(np.array(ours(model, b))[b.real], want) > 1e-3


def test_gradients_with_global_tokens_equal_transformers(tmp_path: Path) -> None:
    b = batch(LONGFORMER_CASE)
    reference = write(LONGFORMER_CASE, tmp_path)
    errors = gradient_errors(checkpoint.load_model(tmp_path), reference, b, global_mask(b, "unequal"))
    assert sum("_global" in name for name in errors) == 3 * 5
    assert max(errors.values()) <= 5e-5, max(errors, key=errors.__getitem__)


TRAINING = [
    pytest.param(big_bird(45, block_size=4, num_random_blocks=2), id="a few blocks"),
    pytest.param(big_bird(61, block_size=4, num_random_blocks=1, num_attention_heads=6), id="six heads"),
    pytest.param(big_bird(209, block_size=16, num_random_blocks=3, max_position_embeddings=256), id="three random"),
    pytest.param(big_bird(1024, block_size=16, max_position_embeddings=2048), id="a length of the paper"),
    pytest.param(big_bird(1019, block_size=32, max_position_embeddings=1024), id="padded to a length of the paper"),
    pytest.param(big_bird(3072, block_size=64, max_position_embeddings=4096), id="a longer one of the paper"),
]


@pytest.mark.parametrize("case", TRAINING)
def test_logits_with_random_blocks_in_training_equal_transformers(case: Case, tmp_path: Path) -> None:
    b = batch(case)
    reference = write(case, tmp_path).train()
    model = checkpoint.load_model(tmp_path)
    want = theirs(reference, b).detach().numpy()[b.real]
    evaluated = np.array(ours(model, b))[b.real]
    model.train()
    assert relative(np.array(ours(model, b))[b.real], want) <= 2e-5
    assert relative(evaluated, want) > 1e-3
    model.eval()
    np.testing.assert_array_equal(np.array(ours(model, b))[b.real], evaluated)


def test_gradients_in_training_equal_transformers(tmp_path: Path) -> None:
    case = big_bird(61, block_size=4, num_random_blocks=2)
    reference = write(case, tmp_path).train()
    model = checkpoint.load_model(tmp_path)
    model.train()
    errors = gradient_errors(model, reference, batch(case))
    assert max(errors.values()) <= 5e-5, max(errors, key=errors.__getitem__)


DEFAULTS = [
    pytest.param("Longformer", 499, {}, id="longformer"),
    pytest.param("Longformer", 1131, {"max_position_embeddings": 4098}, id="longformer of the paper's length"),
    pytest.param("BigBird", 704, {}, id="big_bird, the longest with full attention"),
    pytest.param("BigBird", 705, {}, id="big_bird, the shortest with sparse attention"),
    pytest.param("BigBird", 1387, {}, id="big_bird"),
]


@pytest.mark.parametrize(("name", "length", "options"), DEFAULTS)
def test_default_windows_and_blocks_equal_transformers(name: str, length: int, options: dict, tmp_path: Path) -> None:
    narrow = {"num_hidden_layers": 2, "hidden_size": 192, "intermediate_size": 768}  # a quarter of the default width
    options = {"vocab_size": 211, **narrow, **options}
    case = Case("default", f"{name}ForMaskedLM", f"{name}Config", options, length)
    b = batch(replace(case, options={**options, "pad_token_id": LONGFORMER["pad_token_id"] * (name == "Longformer")}))
    want = theirs(write(case, tmp_path), b).detach().numpy()[b.real]
    assert relative(np.array(ours(checkpoint.load_model(tmp_path), b))[b.real], want) <= 1e-4
