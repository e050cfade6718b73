"""Token ids of prompts and options against the model's vocabularies."""

from __future__ import annotations

import pytest

from macllm.errors import UsageError
from macllm.generation.limits import check
from macllm.generation.request import Request, SamplingParams
from tests.families.golden import shared_model


def test_a_prompt_is_checked_against_the_encoders_vocabulary() -> None:
    """A Marian with two tables: its encoder reads 97 tokens, its decoder predicts 83."""
    info = shared_model("marian-two-tables").info
    assert (info.prompt_vocab_size, info.vocab_size) == (97, 83)
    check(info, Request(prompt=[96, 90, 0]), [96, 90, 0])
    with pytest.raises(UsageError, match="the prompt has the token 97; this model's tokens are 0 to 96"):
        check(info, Request(prompt=[97]), [97])
    biased = Request(prompt=[96], sampling=SamplingParams(logit_bias=((90, 1.0),)))
    with pytest.raises(UsageError, match="from 0 to 82"):
        check(info, biased, [96])


@pytest.mark.parametrize("name", ["llama", "t5", "marian", "bart"])
def test_prompt_and_answer_share_the_vocabulary_of_a_shared_embedding(name: str) -> None:
    info = shared_model(name).info
    assert (info.prompt_vocab_size, info.vocab_size) == (97, 97)
    with pytest.raises(UsageError, match="tokens are 0 to 96"):
        check(info, Request(prompt=[97]), [97])


@pytest.mark.parametrize("prompt", [("a",), (1.5,), (None,), ([1],)], ids=str)
def test_a_prompt_of_anything_but_token_ids_is_a_usage_error(prompt: tuple) -> None:
    with pytest.raises(UsageError, match="it must be a sequence of token ids"):
        check(shared_model("llama").info, Request(prompt=prompt), prompt)
