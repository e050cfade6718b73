"""The same logits through transformers' processors, in transformers' order."""

from __future__ import annotations

from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from macllm.ops.draw_params import DrawParams
from macllm.ops.penalties import CountPenalties
from macllm.ops.sampling_reference import candidates

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

CASES = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": 100_000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"min_p": 0.05},
    {"typical_p": 0.9},
    {"typical_p": 0.2},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {
        "repetition_penalty": 1.1,
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.95,
    },
]


def theirs(logits: np.ndarray, history: list[int], case: dict) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as hf

    made = {
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
    }
    scores = torch.tensor(logits)[None]
    for name, kind in made.items():
        if name in case:
            scores = kind(case[name])(torch.tensor([history]), scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(("size", "case"), list(product([1, 2, 33, 5003], CASES)))
def test_filters_and_penalties_equal_transformers(size: int, case: dict) -> None:
    for seed in range(4):
        random = np.random.default_rng(seed)
        logits = (random.normal(size=size) * 3).astype(np.float32)
        if size > 30:
            logits[random.integers(0, size, size // 10)] = -np.inf
        history = random.integers(0, size, 12).tolist()
        params = DrawParams(**case)
        ours = mx.array(logits)
        if params.repetition_penalty != 1.0:
            ours = CountPenalties(params, history, size)(ours)
        values, tokens = candidates(ours, params)
        probabilities = np.zeros(size)
        probabilities[np.arange(size) if tokens is None else np.array(tokens)] = np.array(mx.softmax(values))
        np.testing.assert_allclose(probabilities, theirs(logits, history, case), atol=2e-6, rtol=2e-4)
