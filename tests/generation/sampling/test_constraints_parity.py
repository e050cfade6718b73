"""Greedy tokens under each constraint, against transformers' processors in their order."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macllm.generation.sampling.constraints import Bounds
from macllm.generation.sampling.defaults import defaults
from macllm.generation.sampling.sampler import Sampler
from macllm.ops import using

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

SIZE, STEPS, END = 12, 14, 2

FILES: list[dict[str, Any]] = [
    {},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.4},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2, "no_repeat_ngram_size": 3},
    {"bad_words_ids": [[5], [2], [6, 7], [8, 8], [1, 9, 4]]},
    {"bad_words_ids": [[a, b] for a in range(12) for b in range(0, 12, 2)]},
    {"sequence_bias": [[[3], 4.0], [[5, 6], -5.5], [[7, 7, 7], 9.0], [[4], -2.0]], "repetition_penalty": 1.2},
    {"sequence_bias": [[[a, (a * 5 + 1) % 12], 6.5] for a in range(12)]},
    {"min_length": 9},
    {"min_new_tokens": 6},
    {"min_length": 11, "min_new_tokens": 3},
    {"suppress_tokens": [1, 4, 9]},
    {"begin_suppress_tokens": [0, 1, 2, 3, 4, 5, 6]},
    {"forced_eos_token_id": 7},
    {"forced_eos_token_id": [7, 5], "min_new_tokens": 30},
    {"forced_bos_token_id": 9},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": [0, 1, 2, 3, 4, 5, 6], "min_new_tokens": 4},
    {
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[5, 6], [1]],
        "sequence_bias": [[[3, 3], 5.0]],
        "min_length": 8,
        "forced_eos_token_id": 2,
        "suppress_tokens": [10],
        "begin_suppress_tokens": [3],
        "repetition_penalty": 1.3,
    },
]


def theirs(file: dict[str, Any], prompt: list[int], source: list[int], logits: np.ndarray, *, text_to_text: bool):
    """The greedy tokens of transformers' own list of processors."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=SIZE, n_positions=8))
    model.config.is_encoder_decoder = text_to_text
    config = GenerationConfig(**file, eos_token_id=[END], max_new_tokens=STEPS)
    config._eos_token_tensor = torch.tensor([END])
    config = model._prepare_generated_length(config, False, True, "input_ids", len(prompt), torch.tensor([prompt]))
    processors = model._get_logits_processor(config, len(prompt), torch.tensor([source]), None, [])
    tokens = list(prompt)
    for row in logits:
        tokens.append(int(processors(torch.tensor([tokens]), torch.tensor(row)[None]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kernels", ["native", "stock"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: "+".join(file) or "nothing")
@pytest.mark.parametrize("text_to_text", [False, True], ids=["decoder", "text-to-text"])
def test_constrained_greedy_tokens_equal_transformers(file: dict, text_to_text: bool, kernels: str) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        logits = (random.normal(size=(STEPS, SIZE)) * 3).astype(np.float32)
        logits[:, END] += 2
        source = random.integers(0, SIZE, 9).tolist()
        prompt = [0] if text_to_text else source[: [9, 1, 3, 2][seed]]
        want = theirs(file, prompt, source if text_to_text else prompt, logits, text_to_text=text_to_text)
        params = defaults({**file, "eos_token_id": [END], "do_sample": False}, vocab_size=SIZE)
        bounds = Bounds(prompt=source if text_to_text else prompt, ends=frozenset({END}), max_tokens=STEPS)
        history, rows = prompt, logits
        if text_to_text and "forced_bos_token_id" in file:  # the forced first token is given, not drawn
            bounds = Bounds(prompt=source, ends=frozenset({END}), max_tokens=STEPS - 1, given=1)
            history, rows, want = [0, file["forced_bos_token_id"]], logits[1:], want[1:]
        with using(kernels):
            sampler = Sampler(params, 0, history, SIZE, bounds)
            drawn = [sampler(mx.array(row), step) for step, row in enumerate(rows)]
        assert [token.item() for token in drawn] == want, (seed, prompt)
