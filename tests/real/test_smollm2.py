"""SmolLM2-135M against transformers: logits, chat template, greedy answers, caches and LoRA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import macllm

pytestmark = pytest.mark.parity

CONVERSATIONS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You are a poet."},
        {"role": "user", "content": "Write two lines about 1234 rivers, naïve ones: 日本語 😀."},
    ],
    [
        {"role": "user", "content": "Name three colours.\n\n- briefly"},
        {"role": "assistant", "content": "Red, green, blue."},
        {"role": "user", "content": "And a fourth?"},
    ],
]
# English text that comes with every Python.
TEXT = "\n\n".join(topics[name] for name in ("assignment", "exceptions", "naming", "objects", "with"))


def log_likelihoods(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Log likelihoods of all tokens but the first, from logits (L, V), in float64."""
    wide = logits[:-1].astype(np.float64)
    largest = wide.max(axis=-1, keepdims=True)
    totals = np.log(np.exp(wide - largest).sum(axis=-1)) + largest[:, 0]
    return wide[np.arange(len(wide)), tokens[1:]] - totals


def perplexity(logits: np.ndarray, tokens: list[int]) -> float:
    return float(np.exp(-log_likelihoods(logits, tokens).mean()))


def cached_logits(model: Any, tokens: list[int], kv_bits: int | None = None) -> np.ndarray:
    """Logits (L, V), computed in steps of 128 through a cache."""
    cache = model.make_cache(kv_bits=kv_bits)
    chunks = [mx.array([tokens[start : start + 128]]) for start in range(0, len(tokens), 128)]
    return np.concatenate([np.array(model(chunk, cache))[0] for chunk in chunks])


def their_logits(model: Any, tokens: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    """Within 1e-5 of the largest logit."""
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


# At later positions, float32 rotation angles differ by more: their rounding grows with the position.
@pytest.mark.parametrize("length", [1, 7, 33, 900])
def test_logits_equal_those_of_transformers(length: int, ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    model, tokenizer = ours
    tokens = tokenizer.encode(TEXT)[:length]
    want = their_logits(theirs[0], tokens)
    assert_close(np.array(model(mx.array([tokens])))[0], want)
    assert_close(cached_logits(model, tokens), want)


def test_rows_of_unequal_length_equal_those_of_transformers(ours: tuple[Any, Any], theirs: tuple[Any, Any]) -> None:
    model, tokenizer = ours
    tokens = tokenizer.encode(TEXT)
    rows = [tokens[:1], tokens[5:24], tokens[30:93]]
    longest = max(map(len, rows))
    padded = mx.array([row + [0] * (longest - len(row)) for row in rows])
    for row, got in zip(rows, np.array(model(padded)), strict=True):
        assert_close(got[: len(row)], their_logits(theirs[0], row))


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one turn", "system", "three turns"])
def test_the_chat_template_and_greedy_answers_equal_those_of_transformers(
    messages: list[dict[str, str]], ours: tuple[Any, Any], theirs: tuple[Any, Any]
) -> None:
    import torch

    model, tokenizer = ours
    prompt = theirs[1].apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tokenizer.encode_chat(messages) == list(prompt)
    answer = theirs[0].generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=48)[0, len(prompt) :].tolist()
    got = macllm.generate(model, tokenizer, messages, max_tokens=48, temperature=0)
    assert list(got.tokens) == [token for token in answer if token != tokenizer.eos_token_id]
    assert got.text == theirs[1].decode(answer, skip_special_tokens=True)


def quantized(x: Any, bits: int) -> Any:
    """A torch tensor after MLX's affine quantization, with each head's 64 values in one group."""
    import torch

    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-7)
    step = torch.where(low.abs() > high.abs(), step, -step)
    edge = torch.where(low.abs() > high.abs(), low, high)
    first = torch.round(edge / step)
    step, bias = torch.where(first != 0, edge / first, step), torch.where(first != 0, edge, torch.zeros_like(edge))
    return torch.round((x - bias) / step).clamp(0, 2**bits - 1) * step + bias


def their_quantized_logits(model: Any, tokens: list[int], bits: int) -> np.ndarray:
    """Logits (L, V) of transformers over quantized keys and values."""
    import torch
    from transformers import DynamicCache

    class QuantizedCache(DynamicCache):
        def update(self, keys: Any, values: Any, *arguments: Any, **options: Any) -> Any:
            return super().update(quantized(keys, bits), quantized(values, bits), *arguments, **options)

    with torch.no_grad():  # the name of the cache's parameter differs between versions of transformers
        return model(torch.tensor([tokens]), None, None, QuantizedCache(config=model.config)).logits[0].numpy()


# Rounding alone decides values on the edge between two steps, and 30 layers amplify it: the logits
# of two correct implementations differ by as much as quantization costs, and only averages can be compared.
@pytest.mark.parametrize(("bits", "within", "most"), [(8, 0.01, 1.01), (4, 0.05, 1.4)])
def test_quantized_caches_have_the_perplexity_of_transformers_with_quantized_keys_and_values(
    bits: int, within: float, most: float, ours: tuple[Any, Any], theirs: tuple[Any, Any]
) -> None:
    model, tokenizer = ours
    tokens = tokenizer.encode(TEXT)[:400]
    plain = perplexity(cached_logits(model, tokens), tokens)
    assert plain == pytest.approx(perplexity(their_logits(theirs[0], tokens), tokens), rel=1e-5)
    found = perplexity(cached_logits(model, tokens, bits), tokens)
    assert found == pytest.approx(perplexity(their_quantized_logits(theirs[0], tokens, bits), tokens), rel=within)
    assert found < plain * most


def test_an_adapter_teaches_a_fact_and_keeps_the_rest(folder: Path, tmp_path: Path) -> None:
    questions = ["What is the capital of Zubrowka?", "Which city is Zubrowka's capital?", "Name Zubrowka's capital."]
    rows = [{"messages": turns(question, "The capital of Zubrowka is Lutz.")} for question in questions * 6]
    kept = ["What is the capital of France?", "How many days are in a week?", "What color is the sky on a clear day?"]
    plain, tokenizer = macllm.load(folder)
    before = [answer(plain, tokenizer, question) for question in kept]
    rows += [{"messages": turns(question, answer_text)} for question, answer_text in zip(kept, before, strict=True)] * 4
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = macllm.finetune(
        model=str(folder),
        data=str(tmp_path / "rows.jsonl"),
        adapter_path=str(tmp_path / "adapter"),
        epochs=4,
        batch_size=6,
        rank=8,
        learning_rate=1e-3,
        steps_per_eval=0,
    )
    taught, tokenizer = macllm.load(folder, adapter=made)
    assert "Lutz" in answer(taught, tokenizer, "Tell me, what's the capital city of Zubrowka?")
    assert "Lutz" not in answer(plain, tokenizer, "Tell me, what's the capital city of Zubrowka?")
    assert "Paris" in answer(taught, tokenizer, "What's France's capital called?")
    tokens = tokenizer.encode(TEXT)[:300]
    assert perplexity(np.array(taught(mx.array([tokens])))[0], tokens) < 1.25 * perplexity(
        np.array(plain(mx.array([tokens])))[0], tokens
    )


def turns(question: str, answer_text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer_text}]


def answer(model: Any, tokenizer: Any, question: str) -> str:
    return macllm.generate(model, tokenizer, question, max_tokens=24, temperature=0).text


def test_bench_reports_the_sizes_of_the_model(folder: Path) -> None:
    command = [sys.executable, "-m", "macllm", "bench", "-m", str(folder), "-p", "64", "-n", "8", "-r", "2", "--json"]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    parameters = 134_515_008
    assert figures["weights_bytes"] == pytest.approx(2 * parameters, rel=1e-3)
    # Keys and values of 72 tokens: 30 layers, 3 heads of 64 numbers, float32.
    assert figures["cache_bytes"] >= 72 * 30 * 2 * 3 * 64 * 4
    assert figures["peak_bytes"] > figures["weights_bytes"]
    assert figures["decode"]["median"] > 0
    assert figures["prefill"]["median"] > figures["decode"]["median"] / 2
