"""Chunks of the loss and checkpointed layers beside torch in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from macllm.checkpoint import load_model
from macllm.nn import lora, loss
from macllm.nn.recompute import checkpoint_layers

pytestmark = pytest.mark.parity

NAMES = {
    "decoder.layers.": "model.layers.",
    "decoder.norm.": "model.norm.",
    "embedding.tokens.": "model.embed_tokens.",
    "head.proj.": "lm_head.",
    ".mixer_norm.pre.": ".input_layernorm.",
    ".feed_forward_norm.pre.": ".post_attention_layernorm.",
    ".mixer.": ".self_attn.",
    ".feed_forward.": ".mlp.",
}


def theirs(name: str) -> str:
    """Transformers' name of a weight."""
    for ours, other in NAMES.items():
        name = name.replace(ours, other)
    return name


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(loss, "_FEWEST_ROWS", 7)
    monkeypatch.setattr(loss, "_RECOMPUTED_BYTES", 0)


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_and_checkpoints_have_the_loss_and_gradients_of_transformers_in_float64(
    tmp_path: Path, tied: bool
) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    oracle: Any = transformers.LlamaForCausalLM(config)
    oracle.save_pretrained(tmp_path)
    oracle = oracle.double()
    tokens = np.random.default_rng(0).integers(0, 50, (2, 20))
    logits = oracle(torch.tensor(tokens)).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens).flatten(), reduction="none")
    (wanted * torch.arange(40)).sum().backward()

    model: Any = load_model(tmp_path)
    model.unfreeze()
    model.train()
    assert checkpoint_layers(model, True)

    def total(tokens: mx.array) -> mx.array:
        hidden = model.hidden(tokens)
        return (loss.token_losses(model, hidden.reshape(40, -1), tokens.reshape(-1)) * mx.arange(40)).sum()

    value, tree = nn.value_and_grad(model, total)(mx.array(tokens))
    assert value.item() == pytest.approx((wanted * torch.arange(40)).sum().item(), rel=1e-6)
    weights = dict(oracle.named_parameters())
    found: dict[str, mx.array] = dict(tree_flatten(tree))  # type: ignore[arg-type]
    assert {theirs(name) for name in found} == set(weights)
    for name, gradient in found.items():
        expected = weights[theirs(name)].grad.numpy()
        assert np.abs(np.array(gradient) - expected).max() <= 5e-6 * np.abs(expected).max(), name


class HeadOnly(nn.Module):
    """A model of a head alone."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def logits(self, hidden: mx.array) -> mx.array:
        return self.head(hidden)

    def head_modules(self) -> list[nn.Module]:
        return [self.head]


def wide(array: mx.array) -> Any:
    import torch

    return torch.tensor(np.array(array.astype(mx.float32)), dtype=torch.float64, requires_grad=True)


def compare(model: Any, hidden: mx.array, logits: Any, tolerance: float) -> None:
    """Losses and gradients of a head, and of `logits(hidden, weights by name)` in torch and float64."""
    import torch

    targets = np.random.default_rng(1).integers(0, 50, hidden.shape[0])
    weights: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))

    def total(weights: Any, hidden: mx.array) -> mx.array:
        model.update(tree_unflatten(list(weights.items())))
        return (loss.token_losses(model, hidden, mx.array(targets)) * mx.arange(hidden.shape[0])).sum()

    value, (of_weights, of_hidden) = mx.value_and_grad(total, argnums=(0, 1))(weights, hidden)
    x, w = wide(hidden), {name: wide(weight) for name, weight in weights.items()}
    each = torch.nn.functional.cross_entropy(logits(x, w), torch.tensor(targets), reduction="none")
    wanted = (each * torch.arange(len(targets))).sum()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item(), rel=tolerance)
    for got, expected in [(of_hidden, x), *((of_weights[name], w[name]) for name in w)]:
        true = expected.grad.numpy()
        assert np.abs(np.array(got.astype(mx.float32)) - true).max() <= tolerance * np.abs(true).max()


DTYPES = [(mx.float32, 5e-6), (mx.bfloat16, 2e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("trained", [True, False])
def test_chunks_of_a_head_have_the_gradients_of_torch_in_float64(dtype: Any, tolerance: float, trained: bool) -> None:
    model = HeadOnly(nn.Linear(16, 50, bias=False))
    model.set_dtype(dtype)
    if not trained:
        model.freeze()
    model.train()
    hidden, fixed = mx.random.normal((40, 16), key=mx.random.key(0)).astype(dtype), wide(model.head.weight)
    compare(model, hidden, lambda x, w: x @ w.get("head.weight", fixed).T, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float32", "bfloat16"])
def test_chunks_of_an_adapted_head_have_the_gradients_of_torch_in_float64(dtype: Any, tolerance: float) -> None:
    linear = nn.Linear(16, 50, bias=False)
    linear.set_dtype(dtype)
    draw = [mx.random.normal(shape, key=mx.random.key(i)) * 0.3 for i, shape in enumerate([(16, 4), (4, 50)])]
    model = HeadOnly(lora.LoRALinear(linear, *draw, scale=2.0))
    model.train()
    hidden, fixed = mx.random.normal((40, 16), key=mx.random.key(0)).astype(dtype), wide(linear.weight)
    compare(model, hidden, lambda x, w: x @ fixed.T + 2.0 * x @ w["head.lora_a"] @ w["head.lora_b"], tolerance)
