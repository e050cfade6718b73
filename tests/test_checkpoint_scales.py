"""Quantized checkpoints on a CPU: 16-bit scales stay as stored, and nothing changes but memory."""

from __future__ import annotations

import sys
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
from macllm.nn import quantize
from macllm.nn.models import build
from macllm.ops import cpu
from macllm.ops.quantized import using_activations
from macllm.weights.safetensors import load_folder
from tests.adapting import adapter_gradients, assert_float32_like
from tests.nn.test_quantize import BIASED, DENSE, EXPERTS, TOKENS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native kernels are for MLX's CPU backend on Linux")

TYPES = pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
CONFIGS = pytest.mark.parametrize("config", [DENSE, BIASED, EXPERTS], ids=lambda config: config["model_type"])


def folder_of(config: dict[str, Any], dtype: mx.Dtype, folder: Path, mode: str = "affine") -> Path:
    """A checkpoint as mlx-lm quantizes one of 16 bits."""
    mx.random.seed(0)
    model: Any = build(families.spec(Config(config)))
    model.set_dtype(dtype)
    quantize.apply(model, group_size=32, bits=4, mode=mode)
    model.info = replace(model.info, config=config)
    return checkpoint.save(model, None, folder)


def weights(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def is_scale(name: str) -> bool:
    return name.endswith((".scales", ".biases"))


@TYPES
@CONFIGS
def test_scales_stay_16_bit_and_all_other_floats_but_routers_are_float32(
    config: dict[str, Any], dtype: mx.Dtype, tmp_path: Path
) -> None:
    model: Any = checkpoint.load_model(folder_of(config, dtype, tmp_path))
    kept = {name for name, array in weights(model).items() if array.dtype == dtype}
    assert kept >= {name for name in weights(model) if is_scale(name)}
    assert {name for name in kept if not is_scale(name)} <= {n for n in weights(model) if n.endswith("router.weight")}
    cache = model.make_cache()
    assert model(TOKENS, cache=cache).dtype == mx.float32
    assert {array.dtype for array in cache.state} == {mx.float32}


@TYPES
@CONFIGS
@pytest.mark.parametrize("form", ["float", "int8"])
def test_scales_of_16_bits_give_the_outputs_of_the_same_values_in_float32(config, dtype, form, tmp_path: Path) -> None:
    folder = folder_of(config, dtype, tmp_path)
    kept, cast = checkpoint.load_model(folder), checkpoint.load_model(folder, mx.float32)
    assert mx.bfloat16 not in {array.dtype for array in weights(cast).values()}
    with using_activations(form):
        for tokens in (TOKENS, TOKENS[:1, :1], mx.tile(TOKENS, (1, 5))):
            got, want = (np.array(model(tokens)) for model in (kept, cast))
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@TYPES
def test_a_quantized_embedding_row_equals_dequantization_in_float32(dtype: mx.Dtype, tmp_path: Path) -> None:
    model: Any = checkpoint.load_model(folder_of(DENSE, dtype, tmp_path))
    table = model.embedding.tokens
    found = table(mx.array([3, 159]))
    wide = (table.scales.astype(mx.float32), table.biases.astype(mx.float32))
    exact = mx.dequantize(table.weight, *wide, group_size=32, bits=4)
    assert found.dtype == mx.float32
    np.testing.assert_array_equal(np.array(found), np.array(exact)[[3, 159]])


@TYPES
def test_loading_and_saving_gives_the_same_tensors(dtype: mx.Dtype, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load_model(folder_of(EXPERTS, dtype, tmp_path / "a")), None, tmp_path / "b")
    before, after = load_folder(tmp_path / "a"), load_folder(tmp_path / "b")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert (after[name].dtype, bool(mx.array_equal(after[name], array))) == (array.dtype, True), name


def test_without_native_kernels_scales_are_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(DENSE, mx.bfloat16, tmp_path)
    monkeypatch.setattr(cpu, "available", lambda: False)
    model = checkpoint.load_model(folder)
    assert {array.dtype for array in weights(model).values()} == {mx.float32, mx.uint32}


def test_mxfp4_weights_stay_packed_and_other_floats_are_float32(tmp_path: Path) -> None:
    model: Any = checkpoint.load_model(folder_of(DENSE, mx.bfloat16, tmp_path, mode="mxfp4"))
    assert {array.dtype for array in weights(model).values()} == {mx.float32, mx.uint32, mx.uint8}
    assert model(TOKENS).dtype == mx.float32


def test_an_adapter_over_16_bit_scales_has_the_gradients_of_one_over_float32(tmp_path: Path) -> None:
    folder = folder_of(DENSE, mx.bfloat16, tmp_path)
    kept, widened = (checkpoint.load_model(folder, dtype) for dtype in (None, mx.float32))
    assert_float32_like(adapter_gradients(kept, TOKENS), adapter_gradients(widened, TOKENS))
