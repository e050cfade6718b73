"""Checkpoints exchanged with mlx-lm in both directions, with the same logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import macllm
from macllm import checkpoint, families, hub
from macllm.errors import UsageError
from macllm.families.config import Config
from macllm.nn import quantize
from macllm.nn.models import build
from macllm.ops.quantized import using_activations
from macllm.text.tokenizer import Tokenizer
from tests.families.golden import golden

pytestmark = pytest.mark.parity

TOKENS = mx.array(np.random.default_rng(1).integers(3, 90, (2, 4)))
# Families that mlx-lm has. Short rows: its gemma2 ignores windows, its phi3 picks frequencies by another rule.
NAMES = [
    "llama", "llama-tied", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe-mixed", "gemma2",
    "gemma3_text", "phi3", "olmo2", "gpt2",
]  # fmt: skip
RECIPES = [
    {"bits": bits, "group_size": group, "mode": "affine"} for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)
] + [{"bits": 4, "group_size": 32, "mode": "mxfp4"}, {"bits": 4, "group_size": 16, "mode": "nvfp4"}]


# Rows of whole groups, and a width whose square root is exact in bfloat16, to which mlx-lm's Gemma rounds it.
WIDER = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "n_embd": 64, "n_head": 4, "query_pre_attn_scalar": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def whole_activations():
    """Turn off 8-bit activations, which mlx-lm does not have."""
    with using_activations("float"):
        yield


def write(name: str, folder: Path) -> None:
    """A random checkpoint as we write it, its config spelled as this mlx-lm reads it for every family."""
    config = {**golden(name).config, **WIDER, "n_ctx": golden(name).config.get("n_positions")}
    parameters = config.get("rope_parameters") or {}
    if name == "phi3":
        config |= {"rope_parameters": None, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    elif parameters:
        config["rope_theta"] = dict(parameters.get("full_attention", parameters)).get("rope_theta", 1e4)
    if "sliding_attention" in parameters:
        config["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 4
    if "num_local_experts" in config:
        config["num_experts"] = config["num_local_experts"]
    mx.random.seed(0)
    model = build(families.spec(Config(config, ())))
    model.info = replace(model.info, config=config)
    checkpoint.save(model, None, folder)


def mlx_lm_logits(folder: Path) -> np.ndarray:
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return np.array(model(TOKENS))


def close(got: np.ndarray, want: np.ndarray, bound: float = 2e-5) -> None:
    assert np.abs(got - want).max() <= bound * np.abs(want).max()


@pytest.mark.parametrize("name", NAMES)
def test_our_checkpoints_give_the_same_logits_in_mlx_lm(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    close(mlx_lm_logits(tmp_path), np.array(checkpoint.load_model(tmp_path)(TOKENS)))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_quantized_by_mlx_lm_give_its_logits(name: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    write(name, tmp_path / "a")
    theirs, config = load_model(tmp_path / "a")
    theirs, config = quantize_model(theirs, config, 32, 4, quant_predicate=mixed)
    save_model(tmp_path / "b", theirs)
    save_config(config, tmp_path / "b" / "config.json")
    ours = checkpoint.load_model(tmp_path / "b")
    close(np.array(ours(TOKENS)), mlx_lm_logits(tmp_path / "b"))
    whole, parts = quantize.describe(ours)
    assert whole["bits"] == 4
    assert {recipe["bits"] for recipe in parts.values()} == {8}
    checkpoint.save(ours, None, tmp_path / "c")
    close(mlx_lm_logits(tmp_path / "c"), np.array(ours(TOKENS)))


def mixed(path: str, module) -> bool | dict:
    """Quantization predicate: rows of whole groups only, o_proj and c_proj in 8 bits."""
    if not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
        return False
    return {"group_size": 32, "bits": 8} if path.endswith(("o_proj", "c_proj")) else True


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r['mode']}-{r['bits']}-{r['group_size']}")
def test_every_quantization_gives_the_same_logits_in_both_directions(recipe: dict, tmp_path: Path) -> None:
    from mlx_lm.models import llama
    from mlx_lm.utils import save_config, save_model

    config = {
        "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "vocab_size": 97,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": False,
    }  # fmt: skip
    import mlx.nn as nn

    mx.random.seed(0)
    theirs = llama.Model(llama.ModelArgs.from_dict(config))
    nn.quantize(theirs, **recipe)
    save_model(tmp_path / "a", theirs)
    save_config(config | {"quantization": recipe}, tmp_path / "a" / "config.json")
    ours = checkpoint.load_model(tmp_path / "a")
    close(np.array(ours(TOKENS)), mlx_lm_logits(tmp_path / "a"))
    checkpoint.save(ours, None, tmp_path / "b")
    close(mlx_lm_logits(tmp_path / "b"), np.array(ours(TOKENS)))


def test_a_type_that_only_mlx_lm_supports_runs_through_its_class_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlx_lm.models import stablelm
    from mlx_lm.utils import save_config, save_model

    config = {
        "model_type": "stablelm", "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 97,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 1e4, "use_qkv_bias": False,
        "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    mx.random.seed(0)
    theirs = stablelm.Model(stablelm.ModelArgs.from_dict(config))
    save_model(tmp_path, theirs)
    save_config(config, tmp_path / "config.json")
    ours = checkpoint.load_model(tmp_path)
    assert "macllm has no family for stablelm" in caplog.text
    want = np.array(theirs(TOKENS))
    close(np.array(ours(TOKENS)), want)
    cache = ours.make_cache()
    first = np.array(ours.logits(ours.hidden(TOKENS[:, :3], cache=cache)))
    close(np.concatenate([first, np.array(ours(TOKENS[:, 3:], cache=cache))], axis=1), want)
    cache.cut(2)
    close(np.array(ours(TOKENS[:, 2:], cache=cache)), want[:, 2:])
    with pytest.raises(UsageError, match="no hidden states"):
        macllm.embed(ours, Tokenizer.from_folder(hub.resolve(None)), ["a"])
