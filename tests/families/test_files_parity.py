"""Files and configs as they lie on disks, read by transformers and by us: the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macllm import checkpoint
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
    """Store the matrix of `names` under `kept`, with other numbers for each of `differing`."""

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
def test_a_matrix_is_what_the_file_has_for_it(
    case: str, names: tuple[str, ...], kept: tuple[str, ...], differing: tuple[str, ...], tmp_path: Path
) -> None:
    assert difference(case, tmp_path, as_one_matrix(names, kept, differing)) <= 2e-5


@pytest.mark.parametrize(("case", "bias"), [("bert", "cls.predictions"), ("roberta", "lm_head")])
def test_a_bias_of_the_decoder_is_read(case: str, bias: str, tmp_path: Path) -> None:
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
def test_names_of_the_first_berts_are_read(case: str, tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        for name in [name for name in tensors if "LayerNorm." in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        prefix = "bert" if case == "bert" else "roberta"
        tensors[f"{prefix}.embeddings.position_ids"] = np.arange(64)[None]

    assert difference(case, tmp_path, change) <= 2e-5


def test_positions_of_marian_that_are_not_the_sines_are_read(tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        tensors["model.encoder.embed_positions.weight"] = noise(np.zeros((64, 48)), 6)

    assert difference("marian", tmp_path, change) <= 2e-5


def test_a_bart_without_a_bias_of_its_logits_has_none(tmp_path: Path) -> None:
    def change(tensors: Tensors, config: dict) -> None:
        tensors.pop("final_logits_bias", None)

    assert difference("bart", tmp_path, change) <= 2e-5
