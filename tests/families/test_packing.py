"""Checkpoints quantized by other tools: refusals that name the method."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import CheckpointError
from macllm.weights.safetensors import load_file, save_folder
from tests.families.golden import golden

TOKENS = mx.array([[5, 6, 7, 8]])
LINEAR = "model.layers.0.mlp.up_proj"


def folder_with(tmp_path: Path, changes: dict, extra: dict[str, mx.array] | None = None, name: str = "llama") -> Path:
    folder = golden(name).write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if extra:
        save_folder(load_file(folder / "model.safetensors") | extra, folder, {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("declared", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"bits": 4, "group_size": 128, "desc_act": False}, "gptq"),
        ({"w_bit": 4, "q_group_size": 128, "zero_point": True}, "awq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_algo": "FP8", "producer": {"name": "modelopt"}}, "modelopt"),
        ({"quant_method": "torchao"}, "torchao"),
    ],
)
@pytest.mark.parametrize("inner", [False, True])
def test_the_method_in_the_config_is_named_before_tensors_are_read(
    declared: dict, method: str, inner: bool, tmp_path: Path
) -> None:
    changes = {"quantization_config": declared}
    folder = folder_with(tmp_path, {"text_config": changes} if inner else changes)
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match=f"quantized by '{method}'") as raised:
        checkpoint.load_model(folder)
    assert "MLX-quantized copy" in raised.value.remedy


@pytest.mark.parametrize(
    ("endings", "method"),
    [
        (("weight.absmax", "weight.quant_map"), "bitsandbytes"),
        (("SCB",), "bitsandbytes"),
        (("qweight", "qzeros", "scales", "g_idx"), "gptq"),
        (("qweight", "qzeros", "scales"), "awq"),
        (("weight_scale_inv",), "fp8"),
        (("weight_packed", "weight_scale"), "compressed-tensors"),
    ],
)
def test_without_a_config_the_method_is_named_from_tensor_names(
    endings: tuple[str, ...], method: str, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, {}, {f"{LINEAR}.{ending}": mx.zeros(4) for ending in endings})
    with pytest.raises(CheckpointError, match=f"quantized by '{method}'"):
        checkpoint.load_model(folder)


@pytest.mark.parametrize(
    "nothing",
    [None, {}, {"quantization_config": None}, {"quantization": {}}, {"quantization_config": {"quant_method": None}}],
)
def test_empty_quantization_configs_are_ignored(nothing: dict | None, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, nothing or {})
    np.testing.assert_array_equal(
        np.array(checkpoint.load_model(folder)(TOKENS)), np.array(golden("llama").model()(TOKENS))
    )


def test_scales_of_a_quantized_kv_cache_are_ignored_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scales = {f"model.layers.0.self_attn.{name}": mx.ones(()) for name in ("k_scale", "v_proj.output_scale", "v_scale")}
    model = checkpoint.load_model(folder_with(tmp_path, {}, scales))
    np.testing.assert_array_equal(np.array(model(TOKENS)), np.array(golden("llama").model()(TOKENS)))
    assert "3 scales for a quantized KV cache are ignored" in caplog.text


def test_mlx_quantization_is_read_from_either_config_key(tmp_path: Path) -> None:
    from macllm.nn import quantize

    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 40,
        "num_attention_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    model = checkpoint.assemble(config, _random(config))
    from dataclasses import replace

    model.info = replace(model.info, config=config)
    quantize.apply(model, bits=4, group_size=32)
    checkpoint.save(model, None, tmp_path)
    want = np.array(checkpoint.load_model(tmp_path)(TOKENS))
    saved = json.loads((tmp_path / "config.json").read_text())
    recipe = saved.pop("quantization")
    odd = {**recipe, "bits": "4", "group_size": 32.0}
    both = {"quantization": recipe, "quantization_config": recipe}
    for spelled in ({"quantization": odd}, {"quantization_config": recipe}, both):
        (tmp_path / "config.json").write_text(json.dumps(saved | spelled))
        np.testing.assert_array_equal(np.array(checkpoint.load_model(tmp_path)(TOKENS)), want)


def _random(config: dict) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    from macllm import families
    from macllm.families.config import Config
    from macllm.nn.models import build
    from macllm.weights.keymap import to_theirs

    made = build(families.spec(Config(config)))
    return to_theirs(dict(tree_flatten(made.parameters())), families.keys(Config(config, ())))
