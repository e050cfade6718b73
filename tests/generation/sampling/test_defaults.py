from __future__ import annotations

import dataclasses
import math

import pytest

from macllm.errors import UsageError
from macllm.generation.request import Request, SamplingParams
from macllm.generation.sampling import config_file
from macllm.generation.sampling.defaults import OURS, check, defaults


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
            SamplingParams(suppress_tokens=(3, 1), bad_words_ids=((9,), (4, 2))),
        ),
        ({"do_sample": True, "bad_words_ids": [[9], [2]], "eos_token_id": [2]}, SamplingParams(bad_words_ids=((9,),))),
        ({"min_length": 5, "no_repeat_ngram_size": 3}, dataclasses.replace(OURS, min_length=5, no_repeat_ngram_size=3)),
        ({"do_sample": False, "min_new_tokens": 5}, SamplingParams(temperature=0.0, min_new_tokens=5)),
        (
            {"do_sample": False, "forced_bos_token_id": 0, "forced_eos_token_id": 2},
            SamplingParams(temperature=0.0, forced_bos_token_id=0, forced_eos_token_id=(2,)),
        ),
        (
            {"do_sample": True, "sequence_bias": [[[1, 2], -1.5], [[1, 2], 3]], "begin_suppress_tokens": [220, 7]},
            SamplingParams(sequence_bias=(((1, 2), 3.0),), begin_suppress_tokens=(220, 7)),
        ),
    ],
)
def test_defaults_come_from_generation_config_and_else_from_ours(file: dict | None, expected: SamplingParams) -> None:
    assert defaults(file) == expected


ODD = [
    ({"temperature": 1e-6}, {"temperature": 0.0}),
    ({"temperature": 1e-5}, {"temperature": 0.0}),
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": "0.7"}, {"temperature": 0.7}),
    ({"temperature": -1}, {}),
    ({"temperature": "hot"}, {}),
    ({"temperature": True}, {}),
    ({"temperature": math.nan}, {}),
    ({"temperature": math.inf}, {}),
    ({"temperature": [0.5]}, {}),
    ({"top_k": 20.0}, {"top_k": 20}),
    ({"top_k": "20"}, {"top_k": 20}),
    ({"top_k": 0}, {}),
    ({"top_k": -1}, {}),
    ({"top_k": 2.5}, {}),
    ({"top_k": -5}, {}),
    ({"top_p": 1.1}, {}),
    ({"top_p": 0}, {"top_p": 0.0}),
    ({"top_p": -0.1}, {}),
    ({"min_p": 2}, {}),
    ({"typical_p": 1.5}, {}),
    ({"repetition_penalty": 0}, {}),
    ({"repetition_penalty": "1.1"}, {"repetition_penalty": 1.1}),
    ({"suppress_tokens": [5, 600]}, {"suppress_tokens": (5,)}),
    ({"suppress_tokens": [-1]}, {}),
    ({"suppress_tokens": []}, {}),
    ({"suppress_tokens": 5}, {"suppress_tokens": (5,)}),
    ({"suppress_tokens": "none"}, {}),
    ({"suppress_tokens": [5.0, None]}, {"suppress_tokens": (5,)}),
    ({"bad_words_ids": [[5, 600], [7.0], [], 3]}, {"bad_words_ids": ((7,),)}),
    ({"bad_words_ids": {"a": 1}}, {}),
    ({"sequence_bias": [[[5], "x"], [[600], 1.0], 3]}, {}),
    ({"no_repeat_ngram_size": 3.0}, {"no_repeat_ngram_size": 3}),
    ({"no_repeat_ngram_size": -3}, {}),
    ({"min_length": None}, {}),
    ({"forced_bos_token_id": 600}, {}),
    ({"forced_eos_token_id": [5, 600]}, {"forced_eos_token_id": (5,)}),
]


@pytest.mark.parametrize(("file", "taken"), ODD, ids=[str(file) for file, _ in ODD])
def test_odd_values_of_generation_config_are_corrected_or_left_out(file: dict, taken: dict) -> None:
    params = defaults({"do_sample": True, **file}, vocab_size=512)
    assert params == SamplingParams(**taken)
    check(Request(prompt=(1,), sampling=params), vocab_size=512)


@pytest.mark.parametrize("value", ["true", "True", True, 1])
def test_do_sample_is_read_from_booleans_strings_and_numbers(value: object) -> None:
    assert defaults({"do_sample": value}) == SamplingParams()
    assert defaults({"do_sample": "false"}).temperature == 0


@pytest.mark.parametrize(
    ("file", "notes"),
    [
        ({}, []),
        ({"num_beams": 1, "guidance_scale": 1.0, "diversity_penalty": 0.0, "token_healing": False}, []),
        ({"temperature": 0.6, "top_k": 20.0, "top_p": 0, "eos_token_id": [2], "max_new_tokens": 9}, []),
        ({"use_cache": True, "transformers_version": "4", "pad_token_id": 0, "length_penalty": 2.0}, []),
        ({"num_beams": 4}, []),
        (
            {"penalty_alpha": 0.6, "max_time": 3},
            ["generation_config.json asks for penalty_alpha = 0.6, max_time = 3, which macllm does not support"],
        ),
        ({"epsilon_cutoff": 0.1}, []),  # nothing is drawn
        (
            {"epsilon_cutoff": 0.1, "do_sample": True},
            ["generation_config.json asks for epsilon_cutoff = 0.1, which macllm does not support"],
        ),
        ({"temperature": 1e-6}, ["generation_config.json: temperature = 1e-06 is taken as 0, the likeliest token"]),
        ({"top_p": 3}, ["generation_config.json: top_p = 3 is left out"]),
        ({"suppress_tokens": [5, 600]}, ["generation_config.json: 600 of suppress_tokens is left out"]),
    ],
    ids=str,
)
def test_corrected_and_unsupported_settings_are_noted(file: dict, notes: list[str]) -> None:
    assert config_file.read(file, 512).notes == notes


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
def test_tokens_outside_the_vocabulary_and_infinite_biases_are_refused(field: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(field))):
        check(Request(prompt=(1,), sampling=SamplingParams(**field)), vocab_size=10)


def test_extreme_valid_values_are_accepted() -> None:
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
    check(Request(prompt=(1,), sampling=sampling, logprobs=0, max_context=1), vocab_size=1)
    check(Request(prompt=(1,), sampling=OURS))
