"""16-bit checkpoints on a CPU: matrices stay 16-bit, the rest is float32, only memory changes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macllm import checkpoint
from macllm.nn import lora
from macllm.nn.linear import Embedding, Linear
from macllm.nn.moe import ExpertLinear
from macllm.ops import cpu
from macllm.train.config import TrainConfig
from macllm.train.data import Dataset
from macllm.train.events import Counts
from macllm.train.loop import Trainer
from macllm.train.objectives.clm import CausalLM
from macllm.weights.safetensors import load_folder, save_folder
from tests.adapting import adapter_gradients, assert_float32_like
from tests.families.golden import golden
from tests.families.oracles import CASES
from tests.train.toy import arithmetic_rows

# A CPU without them uses float32 weights, which only one of these tests is about.
pytestmark = pytest.mark.skipif(not cpu.available(), reason="there are no CPU kernels here, or they are forbidden")

TYPES = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
TOKENS = mx.array([[5, 6, 7, 8, 9, 10, 11], [9, 3, 4, 5, 6, 7, 8]])


def stored(name: str, dtype: mx.Dtype) -> dict[str, mx.array]:
    return {key: array.astype(dtype) for key, array in golden(name).tensors().items()}


def weights(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def folder_of(name: str, dtype: mx.Dtype, folder: Path) -> Path:
    golden(name).write(folder)
    save_folder(stored(name, dtype), folder, {"format": "pt"})
    return folder


def outputs(model: nn.Module, kind: str) -> np.ndarray:
    """Logits, or an encoder's hidden states."""
    out = model(TOKENS, source=TOKENS[:, ::-1]) if kind == "text-to-text" else model(TOKENS)
    assert out.dtype == mx.float32
    return np.array(out)


@TYPES
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matrices_of_16_bits_give_the_outputs_of_the_same_values_in_float32(case, dtype: mx.Dtype) -> None:
    config = golden(case.name).config
    kept = checkpoint.assemble(config, stored(case.name, dtype))
    cast = checkpoint.assemble(config, stored(case.name, dtype), dtype=mx.float32)
    assert {array.dtype for array in weights(cast).values()} == {mx.float32}
    assert dtype in {array.dtype for array in weights(kept).values()}
    got, want = outputs(kept, case.kind), outputs(cast, case.kind)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@TYPES
@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe"])
def test_matrices_stay_16_bit_and_all_other_weights_are_float32(name: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    model = checkpoint.load_model(folder_of(name, dtype, tmp_path))
    matrices = {
        f"{path}.weight" for path, m in model.named_modules() if isinstance(m, Linear | Embedding | ExpertLinear)
    }
    for name, array in weights(model).items():
        assert array.dtype == (dtype if name in matrices else mx.float32), name
    cache = model.make_cache()
    model(TOKENS, cache=cache)
    assert {array.dtype for array in cache.state} == {mx.float32}


def test_without_native_kernels_all_weights_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    model = checkpoint.assemble(golden("llama").config, stored("llama", mx.bfloat16))
    assert {array.dtype for array in weights(model).values()} == {mx.float32}


@TYPES
def test_loading_and_saving_gives_the_same_tensors(dtype: mx.Dtype, tmp_path: Path) -> None:
    model = checkpoint.load_model(folder_of("qwen3_moe", dtype, tmp_path / "a"))
    checkpoint.save(model, None, tmp_path / "b")
    before, after = load_folder(tmp_path / "a"), load_folder(tmp_path / "b")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert (after[name].dtype, bool(mx.array_equal(after[name], array))) == (dtype, True), name
    assert checkpoint.read_config(tmp_path / "b")["dtype"] == str(dtype).removeprefix("mlx.core.")


def test_values_that_16_bits_cannot_hold_are_saved_in_float32(tmp_path: Path) -> None:
    model = checkpoint.load_model(folder_of("llama", mx.bfloat16, tmp_path / "a"))
    model.decoder.norm.weight = model.decoder.norm.weight + 1e-4
    checkpoint.save(model, None, tmp_path / "b")
    again = load_folder(tmp_path / "b")
    assert again["model.norm.weight"].dtype == mx.float32
    assert again["model.layers.0.self_attn.q_proj.weight"].dtype == mx.bfloat16
    assert mx.array_equal(again["model.norm.weight"], model.decoder.norm.weight)


@TYPES
def test_a_fused_adapter_keeps_the_dtype(dtype: mx.Dtype, tmp_path: Path) -> None:
    model = checkpoint.load_model(folder_of("llama", dtype, tmp_path / "a"))
    lora.apply(model, rank=2, alpha=4)
    for wrap in lora.adapters(model).values():
        wrap.lora_b = mx.random.normal(wrap.lora_b.shape) * 0.1
    want = outputs(model, "decoder")
    lora.fuse(model)
    np.testing.assert_allclose(outputs(model, "decoder"), want, atol=0.05 * np.abs(want).max())
    checkpoint.save(model, None, tmp_path / "b")
    assert {array.dtype for array in load_folder(tmp_path / "b").values()} == {dtype}


@TYPES
def test_an_adapter_over_16_bit_matrices_has_the_gradients_of_one_over_float32(dtype: mx.Dtype) -> None:
    kept, widened = (
        checkpoint.assemble(golden("llama").config, stored("llama", dtype), dtype=asked) for asked in (None, mx.float32)
    )
    assert_float32_like(adapter_gradients(kept, TOKENS), adapter_gradients(widened, TOKENS))


def test_full_fine_tuning_trains_float32_weights() -> None:
    model = checkpoint.assemble(golden("llama").config, stored("llama", mx.bfloat16))
    rows = Dataset(arithmetic_rows(4), [], Counts())
    trainer = Trainer.of(model, CausalLM(), TrainConfig(data="x"), rows)
    assert {array.dtype for array in trainer.state.weights.values()} == {mx.float32}
    assert {array.dtype for array in weights(model).values()} == {mx.float32}


@TYPES
def test_a_quantized_16_bit_layer_gives_the_outputs_of_the_layer(dtype: mx.Dtype) -> None:
    layer = Linear(64, 32)
    layer.weight = layer.weight.astype(dtype)
    x = mx.random.normal((3, 64))
    packed = layer.to_quantized(group_size=32, bits=8)
    np.testing.assert_allclose(np.array(packed(x).astype(mx.float32)), np.array(layer(x)), atol=0.05)
