"""Whole completions, compared with transformers' `generate` on the same tiny checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from macllm import checkpoint
from macllm.generation.request import Request, SamplingParams
from macllm.generation.stream import generate
from tests.families.oracles import CASES, Case, write
from tests.generation.generate_fakes import FakeTokenizer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

NAMES = ["llama", "mistral", "gemma3", "gpt2", "t5", "bart", "marian"]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name)
@pytest.mark.parametrize("penalty", [1.3, 2.5])
def test_greedy_completions_equal_transformers(case: Case, penalty: float, tmp_path: Path) -> None:
    import torch

    theirs = write(case, tmp_path)
    theirs.generation_config.eos_token_id = theirs.generation_config.forced_eos_token_id = None
    prompt = tuple(5 + n * 7 % 80 for n in range(13))
    out = theirs.generate(
        torch.tensor([prompt]),
        do_sample=False,
        num_beams=1,
        use_cache=False,
        max_new_tokens=20,
        repetition_penalty=penalty,
    )[0].tolist()
    expected = out[1:] if case.kind == "text-to-text" else out[len(prompt) :]
    model = checkpoint.load_model(tmp_path)
    model.info = replace(model.info, generation_config={}, eos=frozenset())
    sampling = SamplingParams(temperature=0.0, repetition_penalty=penalty)
    made = generate(model, FakeTokenizer(), Request(prompt=prompt, max_tokens=20, sampling=sampling))
    assert len(set(expected)) > 2 or penalty < 2
    assert list(made.tokens) == expected
