"""Training in little memory: the same losses, gradients and random numbers."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm.errors import UsageError
from macllm.nn import lora, loss
from macllm.nn.mask import attention_mask
from macllm.nn.models import DecoderLM
from macllm.nn.position import Span
from macllm.nn.recompute import checkpoint_layers
from macllm.nn.spec import Bidirectional, Causal, Chunked, Local, MaskSpec, Sliding
from macllm.ops import query_blocks
from macllm.ops.attention import attention
from macllm.ops.cross_entropy import cross_entropy
from macllm.ops.dispatch import using
from macllm.ops.kv import Dense
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Advanced, Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.train.snapshot import Snapshots
from tests.train.toy import ToyLM, arithmetic_rows, random_llama


def decoder(*, tied: bool, dropout: float = 0.0, adapts: bool = False) -> DecoderLM:
    """A small llama in training; its adapter's B is not zero."""
    model = random_llama(tie_word_embeddings=tied)
    if adapts:
        lora.apply(model, rank=2, alpha=4, dropout=dropout)
        for i, layer in enumerate(m for m in model.modules() if isinstance(m, lora.LoRALinear)):
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(i)) * 0.1
    model.train()
    return model


def gradients(model: Any, run: Any) -> tuple[mx.array, dict[str, mx.array]]:
    """Value and gradients by name."""
    tokens = mx.array(np.random.default_rng(0).integers(0, 30, (2, 20)))

    def total(tokens: mx.array) -> mx.array:
        hidden = model.hidden(tokens)
        losses = run(model, hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1))
        return (losses * mx.arange(40)).sum()

    value, tree = nn.value_and_grad(model, total)(tokens)
    return value, dict(tree_flatten(tree))


def whole(model: Any, hidden: mx.array, targets: mx.array) -> mx.array:
    return cross_entropy(model.logits(hidden), targets)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(loss, "_FEWEST_ROWS", 7)
    monkeypatch.setattr(loss, "_RECOMPUTED_BYTES", 0)


MODELS = {
    "tied": lambda: decoder(tied=True),
    "untied": lambda: decoder(tied=False),
    "frozen head": lambda: decoder(tied=True, adapts=True),
    "a model that does not tell its head": ToyLM,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("checkpoints", [False, True])
def test_chunks_of_the_loss_change_neither_loss_nor_gradients(small_chunks: None, make: Any, checkpoints: bool) -> None:
    model = make()
    value, wanted = gradients(model, whole)
    checkpoint_layers(model, checkpoints)
    got, found = gradients(model, loss.token_losses)
    assert got.item() == pytest.approx(value.item(), rel=1e-6)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float(mx.abs(found[name] - gradient).max()) <= 2e-6 * float(mx.abs(gradient).max()), name


def test_a_quantized_and_capped_head_has_the_gradients_of_all_logits(small_chunks: None) -> None:
    class Capped(ToyLM):
        def logits(self, hidden: mx.array) -> mx.array:
            return 3 * mx.tanh(self.head(hidden) / 3)

        def head_modules(self) -> list[nn.Module]:
            return [self.head]

    model = Capped(dim=32)
    model.head = nn.QuantizedLinear(32, 32, bias=True, group_size=32)
    model.head.freeze()
    (value, wanted), (got, found) = gradients(model, whole), gradients(model, loss.token_losses)
    assert got.item() == pytest.approx(value.item(), rel=1e-6)
    for name, gradient in wanted.items():
        assert float(mx.abs(found[name] - gradient).max()) <= 2e-6 * float(mx.abs(gradient).max()), name


def test_checkpointed_layers_draw_the_same_dropout_and_have_the_same_bits() -> None:
    model, results = decoder(tied=True, dropout=0.3, adapts=True), []
    for enabled in (False, True):
        assert checkpoint_layers(model, enabled)
        mx.random.seed(3)
        value, found = gradients(model, whole)
        results.append((value.item(), found, mx.random.uniform().item()))
    (value, wanted, drawn), (got, found, after) = results
    assert (got, after) == (value, drawn)
    assert all(mx.array_equal(found[name], wanted[name]) for name in wanted)


MASKS = [(spec, None) for spec in (Causal(), Sliding(7), Chunked(6), Bidirectional(), Local(5))]
PADDED: list[tuple[MaskSpec, Any]] = [(spec, (0, 4)) for spec in (Causal(), Sliding(7), Chunked(6))]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("spec", "padding"), MASKS + PADDED, ids=str)
def test_blocks_of_queries_have_the_gradients_of_all_scores(
    monkeypatch: pytest.MonkeyPatch, spec: MaskSpec, padding: Any, softcap: float | None
) -> None:
    monkeypatch.setattr(query_blocks, "SHORTEST", 8)
    monkeypatch.setattr(query_blocks, "_SIZE", 5)
    random, length = np.random.default_rng(0), 23
    arrays = [mx.array(random.standard_normal((2, n, length, 16)).astype(np.float32)) for n in (4, 2, 2, 4)]
    real = np.arange(length) >= np.array(padding or (0, 0))[:, None]
    weights = arrays.pop() * mx.array(real)[:, None, :, None]
    arrays.append(mx.array([0.3, -1.0, 0.2, 2.0]))

    def total(training: bool) -> Any:
        def run(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
            mask = attention_mask(spec, Span(0, length, padding), 0)
            y = attention(q, Dense(k, v), scale=0.3, mask=mask, softcap=softcap, sinks=sinks, training=training)
            return (y * weights).sum()

        return mx.value_and_grad(run, argnums=(0, 1, 2, 3))(*arrays)

    with using("stock"):
        (value, wanted), (got, found) = total(False), total(True)
    assert got.item() == pytest.approx(value.item(), abs=1e-4)
    for ours, theirs in zip(found, wanted, strict=True):
        assert float(mx.abs(ours - theirs).max()) <= 5e-6 * float(mx.abs(theirs).max())


def test_a_run_bounds_the_memory_of_buffers_and_restores_its_limits() -> None:
    model, dataset = ToyLM(), Dataset(arithmetic_rows(4), [], Counts())
    cache, memory = mx.set_cache_limit(12345678), mx.set_memory_limit(1234567890)
    try:
        for event in Trainer.of(model, CausalLM(), TrainConfig(data="here", iters=2), dataset).run():
            if isinstance(event, Advanced):
                bounds = mx.set_cache_limit(1 << 28), mx.set_memory_limit(1 << 28)
                assert bounds == (1 << 28, 1 << 28)  # the least
        assert (mx.set_cache_limit(cache), mx.set_memory_limit(memory)) == (12345678, 1234567890)
    finally:
        mx.set_cache_limit(cache)
        mx.set_memory_limit(memory)


def test_a_run_holds_no_weights_but_the_current_ones(tmp_path: Path) -> None:
    """A snapshot, the initial state and the last step are not kept in memory: their arrays are freed."""
    dataset = Dataset(arithmetic_rows(4), [], Counts())
    config = TrainConfig(data="here", iters=4, batch_size=4, save_every=2, steps_per_eval=0, optimizer="lion")
    model = ToyLM(dim=256)
    mx.eval(model.parameters())
    gc.collect()
    weights, before = sum(array.nbytes for _, array in tree_flatten(model.parameters())), mx.get_active_memory()
    for event in Trainer.of(model, CausalLM(), config, dataset, Snapshots(tmp_path, 1, {})).run():
        if isinstance(event, Advanced) and event.work == "training":
            assert mx.get_active_memory() - before < 1.5 * weights  # the moments, beside the new weights


def test_a_model_without_known_layers_refuses_checkpointing() -> None:
    config = TrainConfig(data="here", iters=1, grad_checkpoint=True)
    with pytest.raises(UsageError, match="grad_checkpoint"):
        Trainer.of(ToyLM(), CausalLM(), config, Dataset(arithmetic_rows(4), [], Counts()))
