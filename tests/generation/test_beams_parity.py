"""Sequences and scores of beam search, compared with transformers on the same tiny checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from macllm import checkpoint
from macllm.generation.request import Request, SamplingParams
from macllm.generation.stream import generate
from tests.families.oracles import CASES, write
from tests.generation.generate_fakes import FakeTokenizer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

NAMES = ["t5", "bart", "marian", "llama", "gemma3_text"]
PROMPTS = [tuple(5 + n * 7 % 80 for n in range(13)), (9,), tuple(3 + n * n % 90 for n in range(29))]
MOST = 11
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"num_beams": 3},
    "longer is better": {"num_beams": 4, "length_penalty": 2.0},
    "shorter is better": {"num_beams": 4, "length_penalty": -1.5},
    "by the sum": {"num_beams": 2, "length_penalty": 0.0, "early_stopping": "never"},
    "the longest possible": {"num_beams": 3, "length_penalty": 1.3, "early_stopping": "never"},
    "first ended": {"num_beams": 5, "early_stopping": True},
    "least lengths": {"num_beams": 3, "min_new_tokens": 6},
    "no repeats": {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.4, "early_stopping": True},
    "banned": {"num_beams": 3, "bad_words_ids": ((40,), (41, 42), (7, 8)), "suppress_tokens": (11, 12, 13)},
    "forced": {"num_beams": 3, "length_penalty": 1.5, "forced_bos_token_id": 17, "forced_eos_token_id": (23,)},
}
UNEQUAL = ("shorter is better", "by the sum", "first ended")  # settings in which beams end at different times
OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Ours and theirs; two tokens that beams like end an answer."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    case = next(case for case in CASES if case.name == request.param)
    folder = tmp_path_factory.mktemp(case.name)
    theirs = write(case, folder)
    theirs.generation_config.eos_token_id = theirs.generation_config.forced_eos_token_id = None
    found: list[list[int]] = []
    for prompt in PROMPTS:
        out = theirs.generate(torch.tensor([prompt]), do_sample=False, num_beams=6, num_return_sequences=6,
                              max_new_tokens=8, use_cache=False)  # fmt: skip
        found += out[:, -8:].tolist()
    likely = Counter(row[at] for row in found for at in (4, 5, 6, 7) if row[at] not in row[:4])
    ends = sorted(token for token, _ in likely.most_common(2))
    theirs.generation_config.eos_token_id = ends
    ours = checkpoint.load_model(folder)
    ours.info = replace(ours.info, generation_config={}, eos=frozenset(ends))
    yield ours, theirs
    torch.set_num_threads(threads)


class NoEnd(FakeTokenizer):
    """A tokenizer without an end of its own."""

    eos_token_id = None  # type: ignore[assignment]


@pytest.mark.parametrize("name", SETTINGS)
def test_beams_have_the_sequences_and_scores_of_transformers(name: str, pair: tuple[Any, Any]) -> None:
    import torch

    ours, theirs = pair
    settings = SETTINGS[name]
    given = {
        key: [list(each) for each in value] if key == "bad_words_ids" else value for key, value in settings.items()
    }
    lengths = set()
    forced = int("forced_bos_token_id" in settings)  # counts as new in transformers
    if forced and ours.info.kind == "decoder":
        pytest.skip("the first token of a decoder's answer is forced after a prompt of one token only")
    for prompt in PROMPTS:
        out = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=MOST + forced, return_dict_in_generate=True,
            output_scores=True, use_cache=False, num_return_sequences=settings["num_beams"], pad_token_id=96,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in given.items()},
        )  # fmt: skip
        start = 1 + forced if ours.info.kind == "encoder-decoder" else len(prompt)
        expected = [_answer(row[start:].tolist(), ours.info.eos) for row in out.sequences]
        beams = {key: value for key, value in settings.items() if key in OF_BEAMS}
        sampling = {key: value for key, value in settings.items() if key not in OF_BEAMS}
        made = generate(
            ours,
            NoEnd(),
            Request(
                prompt=prompt, max_tokens=MOST, num_return_sequences=settings["num_beams"], **beams,
                sampling=SamplingParams(temperature=0.0, **sampling),
            ),
        )  # fmt: skip
        assert [beam.tokens for beam in made.beams] == expected
        np.testing.assert_allclose([beam.score for beam in made.beams], out.sequences_scores.numpy(), rtol=2e-5)
        assert made.tokens == made.beams[0].tokens
        lengths |= {len(beam.tokens) for beam in made.beams}
    assert len(lengths) > 1 or name not in UNEQUAL


def _answer(tokens: list[int], ends: frozenset[int]) -> tuple[int, ...]:
    """The tokens before the end and the padding."""
    stops = [at for at, token in enumerate(tokens) if token in ends]
    return tuple(tokens[: stops[0]] if stops else tokens)
