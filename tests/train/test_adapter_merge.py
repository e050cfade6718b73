"""Merging an adapter keeps what it learned, within a measured budget, on a quantized base too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import macllm
from macllm import adapter
from macllm.adapter.merge import BUDGET, Cost, merge
from macllm.checkpoint import load_model, save, stored_types
from macllm.cli import main
from macllm.errors import CheckpointError, UsageError
from macllm.nn import lora, quantize
from macllm.ops.quantized import using_activations
from macllm.weights.safetensors import load_folder
from tests.families import oracles
from tests.train.test_adapter import LLAMA, PHI3, TOKENS, close, make, randomize

MOE = {"model_type": "mixtral", **oracles.SMALL, "hidden_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}
ROWS = [TOKENS[:1], TOKENS[1:]]


def adapted(config: dict[str, Any] = LLAMA, bits: int | None = None, size: float = 0.02) -> Any:
    """A model with an update that is small beside a step of 4 bits."""
    model = make(config)
    if bits:
        quantize.apply(model, bits=bits, group_size=32)
    lora.apply(model, rank=4, alpha=4.0)
    randomize(model)
    for layer in lora.adapters(model).values():
        layer.lora_b = layer.lora_b * (size / 0.1)
    return model


def divergence(model: Any, wanted: Any) -> float:
    """Mean KL divergence in float64."""

    def log_probabilities(model: Any) -> np.ndarray:
        with using_activations("float"):
            logits = np.concatenate([np.array(model(row)[0].astype(mx.float32), np.float64) for row in ROWS])
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    want, got = log_probabilities(wanted), log_probabilities(model)
    return float((np.exp(want) * (want - got)).sum(-1).mean())


def test_merging_into_4_bits_gives_the_touched_layers_more_bits_where_rounding_would_lose_the_update() -> None:
    model, before, base = adapted(bits=4), adapted(bits=4), adapted(bits=4)
    plain = adapted(bits=4)
    lora.fuse(plain)
    lora.remove(base)
    lost = divergence(plain, before)
    effect = divergence(base, before)
    assert lost > 0.5 * effect, "quantizing again would be harmless, so the test says nothing"
    cost = merge(model, ROWS)
    assert cost.precision == "8-bit"
    assert cost.within_budget
    assert not lora.adapters(model)
    assert divergence(model, before) <= BUDGET * effect
    assert cost.effect == pytest.approx(effect, rel=1e-3)
    assert cost.kl == pytest.approx(divergence(model, before), rel=1e-2)
    recipes = quantize.describe(model)
    assert recipes is not None
    assert {recipe["bits"] for recipe in (recipes[0], *recipes[1].values())} == {4, 8}


def test_8_bits_that_are_too_few_end_in_layers_that_are_not_quantized() -> None:
    model, before = adapted(bits=8, size=1e-3), adapted(bits=8, size=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("macllm.adapter.merge._FLOOR", 0.0)
        cost = merge(model, ROWS)
        assert cost.precision == "unquantized"
        assert cost.within_budget
    assert divergence(model, before) < 1e-7


def test_an_update_that_survives_rounding_keeps_the_bits_of_the_base() -> None:
    model = adapted(bits=8, size=0.1)
    assert merge(model, ROWS).precision == "stored"
    recipes = quantize.describe(model)
    assert recipes is not None
    assert recipes[1] == {}
    dense = adapted()
    cost = merge(dense, ROWS)
    assert cost.precision == "stored"
    assert cost.share < 1e-6
    assert cost.changed == 0


@pytest.mark.parametrize("config", [LLAMA, MOE], ids=["dense", "experts"])
def test_dequantizing_unpacks_the_whole_model(config: dict[str, Any]) -> None:
    model, before = adapted(config, bits=4), adapted(config, bits=4)
    cost = merge(model, ROWS, dequantize=True)
    assert quantize.describe(model) is None
    assert not any(array.dtype == mx.uint32 for _, array in tree_flatten(model.parameters()))
    assert cost.within_budget
    with using_activations("float"):
        assert close(model(TOKENS), before(TOKENS), 1e-4)


def test_a_merged_model_has_no_quantization_but_its_own(tmp_path: Path) -> None:
    """mlx-lm writes the recipe under two names, and reads the second where the first is missing."""
    for bits, dequantize in ((8, False), (None, True)):
        model = adapted(bits=4)
        model.info = replace(model.info, config={**model.info.config, "quantization_config": {"bits": 4}})
        merge(model, ROWS, dequantize)
        save(model, None, tmp_path / str(bits))
        config = json.loads((tmp_path / str(bits) / "config.json").read_text())
        assert config.get("quantization", {}).get("bits") == bits
        assert "quantization_config" not in config


def test_a_model_with_layers_of_several_bits_is_loaded_as_it_was_merged(tmp_path: Path) -> None:
    model = adapted(bits=4)
    merge(model, ROWS)
    save(model, None, tmp_path)
    with using_activations("float"):
        assert close(load_model(tmp_path)(TOKENS), model(TOKENS), 1e-4)


GPT2 = {"model_type": "gpt2", "vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.mark.parametrize(
    ("config", "key"), [(PHI3, "q_proj"), (PHI3, "gate_proj"), (GPT2, "v_proj")], ids=["qkv", "gate-up", "gpt2"]
)
def test_layers_of_one_tensor_of_the_checkpoint_get_the_same_bits(
    config: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = make(config)
    quantize.apply(model, bits=4, group_size=32)
    lora.apply(model, rank=4, alpha=4.0, keys=(key,))
    layers = lora.adapters(model)
    randomize(model)
    lora.fuse(model, precision="8-bit")
    with pytest.raises(UsageError, match="different precisions"):
        save(model, None, tmp_path)
    lora.replace(model, layers)
    cost = merge(model, ROWS)
    assert (cost.layers, cost.precision) == (len(layers), "8-bit")
    save(model, None, tmp_path)
    with using_activations("float"):
        assert close(load_model(tmp_path)(TOKENS), model(TOKENS), 1e-4)


def test_the_cost_is_the_divergence_in_float64_and_never_negative() -> None:
    for size in (0.1, 1e-3):
        model, before = adapted(PHI3, size=size), adapted(PHI3, size=size)
        cost = merge(model, ROWS)
        assert 0 <= cost.kl == pytest.approx(divergence(model, before), rel=1e-3, abs=1e-16)
    assert Cost(kl=1e-3, effect=0.0, changed=1, tokens=9, layers=1, precision="stored").share == float("inf")
    assert Cost(kl=1e-9, effect=0.0, changed=0, tokens=9, layers=1, precision="stored").share == 0


def test_weights_that_are_not_finite_and_no_adapter_are_refused() -> None:
    for value, cause in ((float("nan"), "the adapter's"), (1e39, "too large"), (None, "the base's")):
        model = adapted()
        layer = next(iter(lora.adapters(model).values()))
        if value is None:
            layer.linear.weight = layer.linear.weight * float("inf")
        elif value > 1:
            layer.scale = value
        else:
            layer.lora_a = layer.lora_a * value
        with pytest.raises(CheckpointError, match="not be finite") as caught:
            merge(model, ROWS)
        assert cause in (caught.value.cause or "")
        assert lora.adapters(model)
    with pytest.raises(UsageError, match="no adapter to merge"):
        merge(make(), ROWS)


def test_a_model_that_cannot_be_measured_loses_nothing() -> None:
    model, before = adapted(bits=4), adapted(bits=4)
    cost = merge(model, [])
    assert (cost.precision, cost.tokens) == ("unquantized", 0)
    with using_activations("float"):
        assert close(model(TOKENS), before(TOKENS), 1e-4)


def test_fuse_says_what_merging_a_blend_cost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model, tokenizer = macllm.load()
    quantize.apply(model, bits=4, group_size=64)
    macllm.save(model, tokenizer, tmp_path / "base")
    lora.apply(model, rank=4, alpha=8.0, keys=("down_proj",), num_layers=2)
    randomize(model)
    for half in ("a", "b"):
        adapter.save(model, tmp_path / half, {"model": str(tmp_path / "base")})
    assert main(["fuse", "--adapter", "~/a:0", "-o", "~/fused"]) == 2
    assert "no adapter to merge" in capfd.readouterr().err
    assert main(["fuse", "--adapter", "~/a:0.5", "--adapter", "~/b:0.5", "-o", "~/fused"]) == 0
    out, told = capfd.readouterr()
    line = next(line for line in told.splitlines() if line.startswith("merged 2 layers: KL "))
    assert "greedy tokens changed" in line
    assert "in 8 bits" in line
    assert out.strip() == str(tmp_path / "fused")


def test_a_base_that_an_adapter_records_and_that_is_missing_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter.save(adapted(), tmp_path / "a", {"model": str(tmp_path / "gone")})
    for command in (["fuse", "--adapter"], ["adapters", "export", "--form", "peft"]):
        assert main([*command, str(tmp_path / "a"), "-o", str(tmp_path / "out")]) == 3
        told = capfd.readouterr().err
        assert f"the base that the adapter records is missing: {tmp_path / 'gone'}" in told
        assert "try: --model" in told


@pytest.mark.parametrize("bits", [None, 4], ids=["dense", "quantized"])
def test_fuse_keeps_the_types_of_the_base_where_they_are_wider_in_memory(
    bits: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(bits=bits)
    adapter.save(model, tmp_path / "adapter", {"model": str(tmp_path / "base")})
    lora.remove(model)
    model.set_dtype(mx.bfloat16)
    save(model, macllm.load()[1], tmp_path / "base")
    monkeypatch.setattr("macllm.checkpoint._as_stored", lambda _: frozenset())  # as without kernels
    assert main(["fuse", "--adapter", str(tmp_path / "adapter"), "-o", str(tmp_path / "fused")]) == 0
    types = {array.dtype for array in load_folder(tmp_path / "fused").values()}
    assert types == {mx.bfloat16, mx.uint32} if bits else types == {mx.bfloat16}


def test_a_number_that_is_too_large_for_the_type_of_the_base_is_refused(tmp_path: Path) -> None:
    model = make()
    model.set_dtype(mx.float16)
    types = stored_types(save(model, None, tmp_path / "base"))
    model.set_dtype(mx.float32)
    model.embedding.tokens.weight = model.embedding.tokens.weight + 1e5
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has numbers that are too large for float16"):
        save(model, None, tmp_path / "merged", types)
    assert not (tmp_path / "merged").exists()


def test_a_loss_over_the_budget_is_told() -> None:
    from macllm.cli.fuse import _described

    cost = Cost(kl=0.02, effect=0.1, changed=3, tokens=200, layers=4, precision="unquantized")
    assert "20.0% of its effect" in _described(cost)
    assert "more than the 1% that is allowed" in _described(cost)
