"""Checkpoints with unusual tensors and configs: the same logits in transformers and here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm import checkpoint, families
from macllm.families.config import Config
from tests.families.oracles import CASES, batch, write
from tests.families.test_parity import compared, our_logits, theirs_logits

pytestmark = pytest.mark.parity

BY_NAME = {case.name: case for case in CASES}
Tensors = dict[str, np.ndarray]


def noise(like: np.ndarray, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(like.shape) * 0.2).astype(np.float32)


def difference(name: str, folder: Path, change: Callable[[Tensors, dict], None]) -> float:
    """The largest difference of our logits from transformers' for a changed checkpoint, over the largest."""
    import transformers
    from safetensors.numpy import load_file, save_file

    case, b = BY_NAME[name], batch(BY_NAME[name])
    write(case, folder)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    theirs = getattr(transformers, case.model).from_pretrained(folder, attn_implementation="eager").float().eval()
    want = theirs_logits(case, theirs, b).detach().numpy()[compared(case, b)]
    got = np.array(our_logits(case, checkpoint.load_model(folder), b))[compared(case, b)]
    assert want.std() > 0.05
    return float(np.abs(got - want).max() / np.abs(want).max())


def as_one_matrix(names: tuple[str, ...], kept: tuple[str, ...], differing: tuple[str, ...]) -> Any:
    """Store the matrix of `names` under `kept`, and other values under each of `differing`."""

    def change(tensors: Tensors, config: dict) -> None:
        matrix = next(tensors[name] for name in names if name in tensors)
        for name in names:
            tensors.pop(name, None)
        tensors.update({name: matrix.copy() for name in kept})
        tensors.update({name: noise(matrix, seed) for seed, name in enumerate(differing)})

    return change


LLAMA = ("model.embed_tokens.weight", "lm_head.weight")
GPT2 = ("wte.weight", "transformer.wte.weight", "lm_head.weight")
T5 = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
BART = tuple(f"model.{name}" for name in T5[:3]) + T5[3:]
BERT = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
ROBERTA = ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight")


@pytest.mark.parametrize(
    ("case", "names", "kept", "differing"),
    [
        ("llama-tied", LLAMA, (LLAMA[1],), ()),
        ("llama-tied", LLAMA, (LLAMA[0],), (LLAMA[1],)),
        ("gemma3_text", LLAMA, (LLAMA[0],), (LLAMA[1],)),
        ("gpt2", GPT2, (GPT2[2],), ()),
        ("gpt2", GPT2, (GPT2[1],), (GPT2[2],)),
        ("bert", BERT, (BERT[1],), ()),
        ("bert", BERT, (BERT[0],), (BERT[1],)),
        ("roberta", ROBERTA, (ROBERTA[0],), (ROBERTA[1],)),
        ("t5", T5, (T5[1],), ()),
        ("t5", T5, (T5[3],), ()),
        ("t5", T5, (T5[0],), (T5[3],)),
        ("t5", T5, (T5[0],), (T5[1],)),
        ("t5", T5, (T5[0],), (T5[2],)),
        ("t5", T5, (), (T5[1], T5[2])),
        ("t5-v1.1", T5, (T5[0],), (T5[1], T5[2], T5[3])),
        ("bart", BART, (BART[2],), ()),
        ("bart", BART, (BART[0],), (BART[1],)),
        ("bart", BART, (BART[0],), (BART[2],)),
        ("bart", BART, (BART[0],), (BART[1], BART[2])),
        ("bart", BART, (BART[0],), (BART[3],)),
        ("marian", BART, (BART[0],), (BART[1],)),
        ("marian", BART, (BART[1],), ()),
        ("marian", BART, (), (BART[1], BART[2], BART[3])),
    ],
)
def test_tied_matrices_under_any_stored_names_equal_transformers(
    case: str, names: tuple[str, ...], kept: tuple[str, ...], differing: tuple[str, ...], tmp_path: Path
) -> None:
    assert difference(case, tmp_path, as_one_matrix(names, kept, differing)) <= 2e-5


@pytest.mark.parametrize(
    ("case", "bias"),
    [
        ("bert", "cls.predictions"),
        ("roberta", "lm_head"),
        ("longformer", "lm_head"),
        ("big_bird", "cls.predictions"),
    ],
)
def test_a_bias_of_the_masked_lm_decoder_is_read(case: str, bias: str, tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        tensors[f"{bias}.decoder.bias"] = noise(tensors[f"{bias}.bias"], 4)

    assert difference(case, tmp_path, change) <= 2e-5


def test_an_untied_masked_head_is_read(tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        config["tie_word_embeddings"] = False
        tensors[BERT[1]] = noise(tensors[BERT[0]], 5)
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]

    assert difference("bert", tmp_path, change) <= 2e-5


@pytest.mark.parametrize("case", ["bert", "roberta"])
def test_gamma_and_beta_of_old_berts_are_read(case: str, tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        for name in [name for name in tensors if "LayerNorm." in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        prefix = "bert" if case == "bert" else "roberta"
        tensors[f"{prefix}.embeddings.position_ids"] = np.arange(64)[None]

    assert difference(case, tmp_path, change) <= 2e-5


def test_marian_positions_that_differ_from_sines_are_read(tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        tensors["model.encoder.embed_positions.weight"] = noise(np.zeros((64, 48)), 6)

    assert difference("marian", tmp_path, change) <= 2e-5


def test_a_bart_without_final_logits_bias_equals_transformers(tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        tensors.pop("final_logits_bias", None)

    assert difference("bart", tmp_path, change) <= 2e-5


CLASSES = {
    "bart": "BartConfig",
    "bert": "BertConfig",
    "big_bird": "BigBirdConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gpt2": "GPT2Config",
    "llama": "LlamaConfig",
    "llama4_text": "Llama4TextConfig",
    "longformer": "LongformerConfig",
    "marian": "MarianConfig",
    "mistral": "MistralConfig",
    "mixtral": "MixtralConfig",
    "olmo2": "Olmo2Config",
    "phi3": "Phi3Config",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "roberta": "RobertaConfig",
    "t5": "T5Config",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_config_without_defaults_gives_the_spec_of_the_complete_config(kind: str) -> None:
    import transformers

    made = getattr(transformers, CLASSES[kind])
    for changes in ({}, *CHANGES.get(kind, ())):
        raw = {"model_type": kind, **changes}
        whole = made(**changes).to_dict()
        assert families.spec(Config(raw)) == families.spec(Config(whole)), changes


LINEAR = {"rope_type": "linear", "factor": 8.0}
CHANGES: dict[str, list[dict[str, Any]]] = {
    # the text config of gemma-3-4b
    "gemma3_text": [
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": LINEAR,
            "sliding_window": 1024,
        },
        {"sliding_window_pattern": 2, "rope_theta": 5e5, "num_hidden_layers": 4},
    ],
    "gemma2": [{"num_hidden_layers": 3, "final_logit_softcapping": None}],
    "llama": [{"num_attention_heads": 16}, {"head_dim": 64, "rope_scaling": LINEAR}, {"num_key_value_heads": None}],
    "llama4_text": [
        {"num_hidden_layers": 6, "interleave_moe_layer_step": 2},
        {"num_hidden_layers": 5, "moe_layers": [1, 3], "no_rope_layers": []},
        {"num_hidden_layers": 5, "attention_chunk_size": None},
    ],
    "mistral": [{"sliding_window": None}, {"head_dim": None, "num_attention_heads": 16}],
    "mixtral": [{"sliding_window": 128}],
    "qwen2": [{"use_sliding_window": True}, {"use_sliding_window": True, "max_window_layers": 3}],
    "qwen3": [{"use_sliding_window": True, "sliding_window": None}],
    "qwen3_moe": [
        {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
        {"num_experts": 0},
        {"use_sliding_window": True},
    ],
    "phi3": [{"num_hidden_layers": 2, "sliding_window": 99}],
    "t5": [{"num_layers": 3}, {"tie_word_embeddings": False}, {"feed_forward_proj": "gated-gelu"}],
    "marian": [{"decoder_vocab_size": 7, "share_encoder_decoder_embeddings": False}, {"decoder_vocab_size": 7}],
    "gpt2": [{"n_inner": 100}],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0},
        {"mlp_only_layers": [0, 1, 2, 3]},
        {"decoder_sparse_step": 9},
    ],
)
def test_a_qwen3_moe_with_only_dense_layers_equals_transformers(changes: dict, tmp_path: Path) -> None:
    case = dataclasses.replace(BY_NAME["qwen3_moe"], options={**BY_NAME["qwen3_moe"].options, **changes})
    b = batch(case)
    want = theirs_logits(case, write(case, tmp_path), b).detach().numpy()[b.real]
    got = np.array(our_logits(case, checkpoint.load_model(tmp_path), b))[b.real]
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


SCOUT = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0, "rope_type": "llama3"}


@pytest.mark.parametrize("bounds", [(1.0, 1.0), (4.0, 4.0), (4.0, 1.0)])
def test_llama3_scaling_with_equal_bounds_equals_transformers(bounds: tuple[float, float], tmp_path: Path) -> None:
    low, high = bounds
    scaling = {**SCOUT, "low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": 32}

    def change(tensors: Tensors, config: dict) -> None:
        config["rope_parameters"] = {**scaling, "rope_theta": 10000.0}

    assert difference("llama", tmp_path, change) <= 2e-5


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "gemma2"])
def test_a_model_without_a_head_gives_the_hidden_states_of_transformers(case: str, tmp_path: Path) -> None:
    import torch
    import transformers

    made, b = BY_NAME[case], batch(BY_NAME[case])
    write(made, tmp_path / "whole")
    kind = getattr(transformers, made.model.removesuffix("ForCausalLM") + "Model")
    theirs = kind.from_pretrained(tmp_path / "whole", attn_implementation="eager").float().eval()
    theirs.config.tie_word_embeddings = False
    theirs.save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        seen = torch.tensor(b.real.astype(int))
        want = theirs(torch.tensor(b.tokens), attention_mask=seen).last_hidden_state.numpy()[b.real]
    ours: Any = checkpoint.load_model(tmp_path / "bare")
    got = np.array(ours.hidden(mx.array(b.tokens), lengths=mx.array(b.lengths)))[b.real]
    assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()
