from __future__ import annotations

import dataclasses
import math

import pytest

from macllm.errors import UsageError
from macllm.generation.defaults import OURS, check, defaults
from macllm.generation.request import Request, SamplingParams


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (None, OURS),
        ({}, OURS),
        ({"eos_token_id": 2, "_from_model_config": True}, OURS),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, SamplingParams(temperature=0.6, top_p=0.9)),
        ({"top_k": 64}, SamplingParams(top_k=64)),
        ({"top_k": -1, "top_p": 0.8}, SamplingParams(top_p=0.8)),
        ({"do_sample": True}, SamplingParams()),
        ({"do_sample": True, "temperature": None, "top_p": 0.5}, SamplingParams(top_p=0.5)),
        ({"do_sample": False, "temperature": 0.9}, SamplingParams(temperature=0.0)),
        ({"repetition_penalty": 1.05}, dataclasses.replace(OURS, repetition_penalty=1.05)),
        (
            {"do_sample": False, "repetition_penalty": 1.05},
            SamplingParams(temperature=0.0, repetition_penalty=1.05),
        ),
        (
            {"do_sample": True, "suppress_tokens": [3, 1], "bad_words_ids": [[9], [4, 2]]},
            SamplingParams(logit_bias=((1, -math.inf), (3, -math.inf), (9, -math.inf))),
        ),
    ],
)
def test_the_checkpoint_decides_and_where_it_is_silent_we_do(file: dict | None, expected: SamplingParams) -> None:
    assert defaults(file) == expected


@pytest.mark.parametrize(
    ("file", "temperature"), [(None, 0.0), ({"num_beams": 4}, 0.0), ({"do_sample": True, "temperature": 0.5}, 0.5)]
)
def test_an_encoder_decoder_is_greedy_unless_its_checkpoint_samples(file: dict | None, temperature: float) -> None:
    assert defaults(file, encoder_decoder=True).temperature == temperature


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "from 0 to 100"),
        ("temperature", math.nan, "from 0 to 100"),
        ("temperature", "hot", "from 0 to 100"),
        ("temperature", 1e-9, "from 0.0001 to 100"),
        ("top_k", -1, "from 0"),
        ("top_k", 2.5, "a whole number"),
        ("top_k", True, "a whole number"),
        ("top_p", 1.5, "from 0 to 1"),
        ("min_p", -1, "from 0 to 1"),
        ("typical_p", 2, "from 0 to 1"),
        ("xtc_probability", 7, "from 0 to 1"),
        ("xtc_threshold", -7, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0 and at most 100"),
        ("presence_penalty", 1e9, "from -100 to 100"),
        ("frequency_penalty", None, "from -100 to 100"),
        ("penalty_window", -1, "from 0"),
        ("dry_multiplier", -1, "from 0 to 100"),
        ("dry_base", 0.5, "from 1 to 100"),
        ("dry_allowed_length", 0, "from 1"),
        ("dry_window", -5, "from 0"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("seed", -1, "from 0 to 4294967295"),
    ],
)
def test_a_sampling_value_out_of_range_is_named_with_its_range(name: str, value: object, allowed: str) -> None:
    request = Request(prompt=(1,), sampling=dataclasses.replace(SamplingParams(), **{name: value}))
    with pytest.raises(UsageError, match=name) as error:
        check(request)
    assert repr(value) in error.value.message
    assert allowed in error.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("logprobs", -1),
        ("max_context", 0),
        ("prefill_step", 0),
        ("kv_bits", 5),
        ("stop", ("",)),
        ("stop_tokens", frozenset({99})),
        ("stop_tokens", frozenset({-1})),
    ],
)
def test_a_request_value_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name.split("_")[0]):
        check(Request(prompt=(1,), **{name: value}), vocab_size=10)


@pytest.mark.parametrize(
    "field",
    [
        {"logit_bias": ((10, 1.0),)},
        {"logit_bias": ((1, math.nan),)},
        {"logit_bias": ((1, math.inf),)},
        {"dry_breakers": (10,)},
    ],
)
def test_tokens_and_biases_must_exist(field: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(field))):
        check(Request(prompt=(1,), sampling=SamplingParams(**field)), vocab_size=10)


def test_everything_that_can_be_said_is_taken() -> None:
    sampling = SamplingParams(
        temperature=0,
        top_k=10**6,
        top_p=0,
        min_p=1,
        typical_p=0.0,
        xtc_probability=1,
        logit_bias=((0, -math.inf),),
        seed=2**32 - 1,
    )
    check(Request(prompt=(1,), sampling=sampling, logprobs=0, kv_bits=4, max_context=1), vocab_size=1)
    check(Request(prompt=(1,), sampling=OURS))
