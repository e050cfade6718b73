"""Whole models on simulated Metal kernels against transformers' logits and the reference ops.

Slow tests take every family; the others one of each kind.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import families
from macllm.families.config import Config
from macllm.nn import lora, quantize
from macllm.nn.models import Model, build
from macllm.ops import using
from tests.families.golden import EVERY, golden
from tests.families.oracles import CASES, Case, batch
from tests.simulator.intercept import Log, simulated
from tests.simulator.run import RunOptions

ONCE = RunOptions()  # one schedule: the kernels' own tests run every schedule
WIDE = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5}
WIDE |= {"intermediate_size": 96, "moe_intermediate_size": 32, "intermediate_size_mlp": 64}

DECODERS = [case for case in CASES if case.kind == "decoder" and case.main and "gpt2" not in case.name]
FIRST = {"qwen3_moe", "bert", "bart"}


def by_kind(cases: list[Case], first: set[str]) -> list[Any]:
    """The cases; all but those named in `first` are marked slow."""
    slow = pytest.mark.slow
    return [pytest.param(case, id=case.name, marks=() if case.name in first else slow) for case in cases]


def counted(log: Log) -> Counter[str]:
    assert log.faults == []
    return Counter(name for name, _ in log.dispatches)


@pytest.mark.parametrize("case", by_kind(CASES, FIRST))
def test_logits_equal_transformers(case: Case) -> None:
    stored, b = golden(case.name), batch(case)
    model, tokens, lengths = stored.model(), mx.array(b.tokens), mx.array(b.lengths)
    real = np.ones(b.targets.shape, bool) if case.kind == "text-to-text" else b.real
    with simulated(ONCE) as log, using("metal"):
        if case.kind == "text-to-text":
            got = model(mx.array(b.targets), source=tokens, source_lengths=lengths)
        elif case.kind == "encoder":
            hidden = model(tokens, lengths=lengths)
            got = model.logits(hidden) if model.spec.head else hidden
        else:
            got = model(tokens, lengths=lengths)
        mx.eval(got)
    counted(log)
    want = stored.logits[real]
    assert np.abs(np.array(got)[..., ::EVERY][real] - want).max() <= 2e-5 * np.abs(want).max()


def wide(case: Case) -> Model:
    """A model of a family, wide enough for packed products, with weights from a seed."""
    mx.random.seed(5)
    model = build(families.spec(Config({**golden(case.name).config, **WIDE})))
    # With norm weights of 1, a missing norm would not show.
    vectors = [(name, x) for name, x in tree_flatten(model.parameters()) if x.ndim == 1]
    model.load_weights([(name, x + 0.3 * mx.random.normal(x.shape)) for name, x in vectors], strict=False)
    return model


def in_steps(model: Model, kv_bits: int | None) -> np.ndarray:
    """Logits of a left-padded prompt, of single tokens, and of a few tokens at once."""
    tokens = mx.array(np.random.default_rng(1).integers(3, 90, (2, 17)))
    cache = model.make_cache(kv_bits=kv_bits, left_padding=[0, 3])
    made, at = [], 0
    for length in (9, 1, 1, 3, 2, 1):
        made.append(np.array(model(tokens[:, at : at + length], cache=cache).astype(mx.float32)))
        at += length
    logits = np.concatenate(made, axis=1)
    logits[1, :3] = 0  # padding
    return logits


@pytest.mark.parametrize("kv_bits", [None, 4, 8])
@pytest.mark.parametrize("case", by_kind(DECODERS, {"qwen3_moe"}))
def test_decoding_with_packed_weights_equals_the_reference(case: Case, kv_bits: int | None) -> None:
    model = wide(case)
    quantize.apply(model, bits=4, group_size=32)
    with using("reference"):
        want = in_steps(model, kv_bits)
    with simulated(ONCE) as log, using("metal"):
        got = in_steps(model, kv_bits)
    kinds = counted(log)
    packed = "_packed" if kv_bits else ""
    if model.spec.decoder.relative_bias is not None:  # which the kernels of attention do not add
        assert kinds.keys() == {"qmv"}
    else:
        assert {f"kv_decode{packed}", "qmv"} <= kinds.keys()
        assert f"qkv_post{packed}" in kinds or case.name == "llama4_text"  # its norms have no weights
    if case.name in ("qwen3_moe", "mixtral"):
        assert kinds["moe_gate_up"] == kinds["moe_down_combine"] > 0
    # A number between two codes may round to either.
    apart = np.abs(got - want)
    assert apart.max() <= (3e-2 if kv_bits else 2e-5) * np.abs(want).max()
    assert np.median(apart) <= 1e-5 * np.abs(want).max()


def layers_in_steps(model: Model, dtype: mx.Dtype) -> mx.array:
    """Outputs of the layers for inputs of one dtype."""
    x = mx.array(np.random.default_rng(2).standard_normal((2, 12, 64)).astype(np.float32)).astype(dtype)
    cache = model.make_cache()
    made, at = [], 0
    for length in (9, 1, 2):
        made.append(model.decoder(x[:, at : at + length], cache.span(length), cache.layers))
        at += length
        mx.eval(made)
    return mx.concatenate(made, axis=1)


# Neither experts nor packed caches: there rounding may change a choice, which is no error but as large as one.
DENSE = [case for case in DECODERS if case.name in ("gemma2", "qwen2", "qwen3")]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("case", by_kind(DENSE, {"qwen3"}))
def test_layers_in_16_bits_are_as_exact_as_mlxs(case: Case, dtype: mx.Dtype) -> None:
    model = wide(case)
    quantize.apply(model, bits=4, group_size=32)
    model.set_dtype(dtype)
    with simulated(ONCE) as log, using("metal"):
        got = layers_in_steps(model, dtype)
    assert {"qmv", "qmv_three"} <= counted(log).keys()
    assert got.dtype == dtype
    with using("stock"):
        stock = layers_in_steps(model, dtype)
    model.set_dtype(mx.float32)
    with using("reference"):
        want = np.array(layers_in_steps(model, mx.float32))
    ours, theirs = (np.abs(np.array(y.astype(mx.float32)) - want) for y in (got, stock))
    assert np.median(ours) <= 1.2 * np.median(theirs)
    assert ours.max() <= 1.5 * theirs.max()


def test_decoding_with_adapters_equals_the_reference() -> None:
    model = wide(CASES[[case.name for case in CASES].index("llama")])
    quantize.apply(model, bits=4, group_size=32)
    lora.apply(model, rank=3, alpha=6.0)
    for adapter in lora.adapters(model).values():
        adapter.lora_b = 0.1 * mx.random.normal(adapter.lora_b.shape)
    model.eval()
    with using("reference"):
        want = in_steps(model, None)
    with simulated(ONCE) as log, using("metal"):
        got = in_steps(model, None)
    kinds = counted(log)
    assert kinds["lora_down"] > 0
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def gradients(model: Model, case: Case) -> dict[str, mx.array]:
    """Gradients of a loss over logits or hidden states, for every parameter."""
    b = batch(case)
    tokens, lengths, real = mx.array(b.tokens), mx.array(b.lengths), mx.array(b.real)[..., None]

    def loss(tokens: mx.array) -> mx.array:
        return (mx.sin(model(tokens, lengths=lengths)) * real).sum() / real.sum()

    return dict(tree_flatten(nn.value_and_grad(model, loss)(tokens)[1]))


TRAINED = [case for case in CASES if case.main and case.kind in ("decoder", "encoder")]


@pytest.mark.parametrize("case", by_kind(TRAINED, {"qwen3", "bert"}))
def test_gradients_of_every_parameter_equal_the_references(case: Case) -> None:
    model = golden(case.name).model()
    with using("reference"):
        want = gradients(model, case)
        mx.eval(want)
    with simulated(ONCE) as log, using("metal"):
        got = gradients(model, case)
        mx.eval(got)
    counted(log)
    for name, gradient in want.items():
        apart = mx.abs(got[name] - gradient).max() / mx.maximum(mx.abs(gradient).max(), 1e-3)
        assert apart.item() <= 1e-4, name
