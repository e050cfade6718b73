"""mlx-lm checkpoints with stray files, tied names and other tools' quantization."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint
from macllm.errors import CheckpointError, ModelNotFoundError
from tests.families.foreign import write

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
TOKENS = np.random.default_rng(1).integers(3, 90, (1, 20))
WEIGHTS = "model.safetensors"


def logits(folder: Path) -> np.ndarray:
    return np.array(checkpoint.load_model(folder)(mx.array(TOKENS)).astype(mx.float32))


def read(folder: Path) -> dict[str, mx.array]:
    weights = mx.load(str(folder / WEIGHTS))
    mx.eval(weights)
    return weights


@pytest.fixture
def stablelm(tmp_path: Path) -> tuple[Path, np.ndarray]:
    write("stablelm", tmp_path)
    return tmp_path, logits(tmp_path)


@pytest.mark.parametrize(
    "name", ["model copy.safetensors", "model.fp16.safetensors", "model-00001-of-00002 2.safetensors"]
)
def test_a_copy_beside_the_weights_is_ignored(name: str, stablelm: tuple[Path, np.ndarray]) -> None:
    folder, want = stablelm
    mx.save_safetensors(str(folder / name), {key: value * 0 for key, value in read(folder).items()})
    np.testing.assert_array_equal(logits(folder), want)


def test_only_the_shards_of_the_index_are_read(stablelm: tuple[Path, np.ndarray]) -> None:
    folder, want = stablelm
    weights = read(folder)
    names, shards = sorted(weights), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        mx.save_safetensors(str(folder / shard), {name: weights[name] for name in names[i::2]})
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(logits(folder), want)
    (folder / shards[0]).rename(folder / "model-00001-of-00002 2.safetensors")
    with pytest.raises(CheckpointError, match="1 of 2 weight files are missing"):
        checkpoint.load_model(folder)


def test_a_byte_order_mark_derived_tensors_and_wide_floats_change_nothing(stablelm: tuple[Path, np.ndarray]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, want = stablelm
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text("\ufeff" + text, encoding="utf-8")
    weights = {name: array.double() for name, array in load_file(folder / WEIGHTS).items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4, dtype=torch.float64)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    np.testing.assert_array_equal(logits(folder), want)


@pytest.mark.parametrize("name", ["glm4-tied", "phi-tied", "smollm3-tied"])
def test_a_tied_matrix_is_read_under_the_name_of_the_head(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    want, weights = logits(tmp_path), read(tmp_path)
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    del weights["model.embed_tokens.weight"]
    mx.save_safetensors(str(tmp_path / WEIGHTS), weights)
    np.testing.assert_array_equal(logits(tmp_path), want)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match="loads"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("endings", "method"),
    [
        (("qweight", "qzeros", "scales", "g_idx"), "gptq"),
        (("weight", "weight_scale_inv"), "fp8"),
        (("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors"),
        (("weight", "weight.absmax", "weight.quant_map"), "bitsandbytes"),
    ],
)
def test_an_unsupported_quantization_method_is_named(
    endings: tuple[str, ...], method: str, declared: bool, stablelm: tuple[Path, np.ndarray]
) -> None:
    folder, _ = stablelm
    weights: dict[str, mx.array] = {}
    for name, array in read(folder).items():
        module = name.removesuffix(".weight")
        weights |= {f"{module}.{end}": mx.zeros((8, 8)) for end in endings} if "_proj" in name else {name: array}
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": {"quant_method": method}} if declared else {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"quantized by '{method}'"):
        checkpoint.load_model(folder)


def test_missing_weights_and_git_lfs_pointers_are_different_errors(stablelm: tuple[Path, np.ndarray]) -> None:
    folder, _ = stablelm
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(CheckpointError, match="valid safetensors") as raised:
        checkpoint.load_model(folder)
    assert "Git LFS" in (raised.value.cause or "")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        checkpoint.load_model(folder)
