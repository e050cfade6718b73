"""Quantized models: layers that are MLX's by type and parameters, and that our kernels compute."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.families.config import Config
from macllm.nn import lora, quantize
from macllm.nn.models import build
from macllm.nn.moe import QuantizedExpertLinear
from macllm.ops import cpu
from macllm.ops.dispatch import using
from macllm.ops.quantized import using_activations

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
DENSE = {"model_type": "llama", "tie_word_embeddings": True, **SIZES}
BIASED = {"model_type": "qwen2", "tie_word_embeddings": False, **SIZES}
EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES}
TOKENS = mx.array([[5, 9, 0, 44, 3, 17], [1, 2, 3, 4, 5, 6]])


def make(config: dict[str, Any], bits: int = 4) -> Any:
    mx.random.seed(0)
    model = build(families.spec(Config(config)))
    quantize.apply(model, bits=bits, group_size=32)
    return model


def relative(a: mx.array, b: mx.array) -> float:
    return float(mx.abs(a - b).max() / mx.abs(b).max())


@pytest.mark.parametrize("config", [DENSE, BIASED, EXPERTS], ids=lambda c: c["model_type"])
def test_layers_are_mlx_layers_with_the_same_parameters(config: dict[str, Any]) -> None:
    ours = make(config)
    mx.random.seed(0)
    theirs = build(families.spec(Config(config)))
    nn.quantize(theirs, 32, 4, class_predicate=lambda p, m: hasattr(m, "to_quantized") and not p.endswith("router"))
    kinds = nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedExpertLinear
    assert {n for n, m in ours.named_modules() if isinstance(m, kinds)} == {
        n for n, m in theirs.named_modules() if isinstance(m, kinds)
    }
    mine, stock = dict(tree_flatten(ours.parameters())), dict(tree_flatten(theirs.parameters()))
    assert mine.keys() == stock.keys()
    assert all(mx.array_equal(mine[name], stock[name]).item() for name in mine)
    assert not dict(tree_flatten(ours.trainable_parameters())).keys() & {n for n in mine if n.endswith("scales")}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("config", [DENSE, BIASED, EXPERTS], ids=lambda c: c["model_type"])
def test_native_stock_and_reference_give_the_same_logits(config: dict[str, Any], bits: int) -> None:
    model = make(config, bits)
    for few in (TOKENS, TOKENS[:1, :1]):
        with using("reference"):
            want = model(few)
        with using("stock"):
            assert relative(model(few), want) < 1e-4
        with using_activations("float"):
            assert relative(model(few), want) < 1e-4
        assert relative(model(few), want) < 0.03


def test_native_kernels_compute_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu.available():
        pytest.skip("the native kernels are for MLX's CPU backend on Linux")
    kernels, called = cpu.kernels(), []

    class Counted:
        def __getattr__(self, name: str) -> object:
            called.append(name)
            return getattr(kernels, name)

    def no_product(*_: object, **__: object) -> mx.array:
        pytest.fail("MLX multiplied")

    monkeypatch.setattr(cpu, "kernels", Counted)
    monkeypatch.setattr(mx, "quantized_matmul", no_product)
    monkeypatch.setattr(mx, "gather_qmm", no_product)
    mx.eval(make(DENSE)(TOKENS), make(EXPERTS)(TOKENS))
    assert called.count("quantized_matmul") == 2 * 7 + 1 + 2 * 4 + 1
    assert called.count("quantized_gather") == 2 * 3


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=lambda c: c["model_type"])
def test_an_adapter_on_quantized_layers_has_the_reference_gradients(config: dict[str, Any]) -> None:
    """Activations are not rounded where a gradient is taken, however few the tokens."""
    model = make(config)
    lora.apply(model, rank=2, alpha=4.0)
    for wrap in lora.adapters(model).values():
        wrap.lora_b = mx.random.normal(wrap.lora_b.shape) * 0.1
    slopes = nn.value_and_grad(model, lambda tokens: mx.square(model(tokens)).mean())
    for tokens in (TOKENS, TOKENS[:1, :3]):
        with using("reference"):
            _, want = slopes(tokens)
        _, got = slopes(tokens)
        for (name, a), (_, b) in zip(tree_flatten(got), tree_flatten(want), strict=True):
            assert relative(a, b) < 1e-3, name


def test_a_fused_adapter_is_quantized_again() -> None:
    model = make(DENSE)
    lora.apply(model, rank=2, alpha=4.0)
    lora.fuse(model)
    kinds = {type(m) for m in model.leaf_modules()["decoder"]["layers"][0]["feed_forward"].values()}
    assert kinds == {quantize.QuantizedLinear}
    np.testing.assert_array_equal(np.array(model(TOKENS).shape), [2, 6, 160])
