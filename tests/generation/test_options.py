"""Options from Python, JSON and numpy values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from macllm.errors import UsageError
from macllm.generation.contract import EngineOptions
from macllm.generation.options import REQUEST_NAMES, SAMPLING_NAMES, read, read_engine_options
from macllm.generation.request import Request, SamplingParams
from macllm.generation.sampling.defaults import check

TOKENS = {"<end>": 2, "a": 5}


def request_of(given: dict[str, Any]) -> Request:
    sampling = {name: value for name, value in given.items() if name in SAMPLING_NAMES}
    rest = {name: value for name, value in given.items() if name in REQUEST_NAMES}
    return Request(prompt=(1,), sampling=SamplingParams(**sampling), **rest)


@pytest.mark.parametrize(
    ("option", "read_as"),
    [
        ({"logit_bias": {"5": 100}}, ((5, 100.0),)),
        ({"logit_bias": {5: 1.5, " 7 ": -1}}, ((5, 1.5), (7, -1.0))),
        ({"logit_bias": [[5, 1]]}, ((5, 1.0),)),
        ({"logit_bias": {np.int64(5): np.float32(0.5)}}, ((5, 0.5),)),
        ({"stop": "x"}, ("x",)),
        ({"stop": ["x", "y"]}, ("x", "y")),
        ({"stop": []}, ()),
        ({"stop_tokens": 2}, frozenset({2})),
        ({"stop_tokens": "<end>"}, frozenset({2})),
        ({"stop_tokens": ["<end>", 7]}, frozenset({2, 7})),
        ({"stop_tokens": {3, 4}}, frozenset({3, 4})),
        ({"stop_tokens": np.array([3, 4])}, frozenset({3, 4})),
        ({"dry_breakers": "a"}, (5,)),
        ({"suppress_tokens": [1]}, (1,)),
        ({"bad_words_ids": [[1, 2], [3]]}, ((1, 2), (3,))),
        ({"sequence_bias": [[[1, 2], 3]]}, (((1, 2), 3.0),)),
        ({"sequence_bias": {(1, 2): 3}}, (((1, 2), 3.0),)),
        ({"forced_eos_token_id": 2}, (2,)),
        ({"forced_bos_token_id": "a"}, 5),
        ({"top_k": np.int32(4)}, 4),
        ({"temperature": np.float32(0.5)}, 0.5),
    ],
    ids=str,
)
def test_options_are_read_from_python_json_and_numpy_values(option: dict[str, Any], read_as: Any) -> None:
    assert list(read(option, TOKENS.get).values()) == [read_as]


@pytest.mark.parametrize("name", sorted(SAMPLING_NAMES | REQUEST_NAMES))
def test_none_counts_as_an_option_that_is_not_given(name: str) -> None:
    assert read({name: None}) == {}


@pytest.mark.parametrize(
    "option",
    [
        {"logit_bias": {5: None}},
        {"logit_bias": {5: "1"}},
        {"logit_bias": {5: True}},
        {"logit_bias": {"five": 1}},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {5.5: 1}},
        {"logit_bias": {None: 1}},
        {"logit_bias": {(1, 2): 1}},
        {"logit_bias": "5"},
        {"logit_bias": 5},
        {"logit_bias": [5]},
        {"logit_bias": [[1, 2, 3]]},
        {"stop": 5},
        {"stop": [5]},
        {"stop": b"x"},
        {"stop": [None]},
        {"stop": {"a": 1}},
        {"stop_tokens": 2.5},
        {"stop_tokens": ["nowhere"]},
        {"stop_tokens": [[2]]},
        {"stop_tokens": True},
        {"stop_tokens": {"a": 1}},
        {"stop_tokens": [None]},
        {"dry_breakers": 1.0},
        {"bad_words_ids": [1, 2]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": "words"},
        {"sequence_bias": [[1, 2]]},
        {"sequence_bias": {5: 2.0}},
        {"suppress_tokens": 1.5},
        {"forced_bos_token_id": [1]},
        {"forced_bos_token_id": "nowhere"},
        {"temperature": "0.7"},
        {"temperature": [0.7]},
        {"temperature": True},
        {"top_k": 2.5},
        {"top_k": "all"},
        {"max_tokens": "10"},
        {"max_tokens": 1.5},
        {"max_tokens": {}},
        {"seed": "x"},
        {"seed": 1.0},
        {"logprobs": True},
        {"max_context": "long"},
        {"no_repeat_ngram_size": -1},
        {"min_new_tokens": "3"},
        {"stop": np.array(3)},
        {"suppress_tokens": np.array(3)},
        {"logit_bias": np.array(3)},
        {"temperature": 10**400},
        {"seed": -(10**400)},
        {"suppress_tokens": [10**5000]},
        {"logit_bias": {5: 10**400}},
        {"dry_base": 10**5000},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_wrong_type_is_a_usage_error_that_names_the_option(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))) as error:
        check(request_of(read(option, TOKENS.get)), vocab_size=10)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "option",
    [
        {"kv_bits": "4"},
        {"kv_bits": [4]},
        {"kv_bits": True},
        {"kv_bits": 5},
        {"kv_bits": np.array([4, 8])},
        {"prefill_step": "x"},
        {"prefill_step": 0},
        {"prefill_step": 1.5},
        {"prefix_bytes": -1},
        {"prefix_bytes": 1e9},
    ],
    ids=str,
)
def test_invalid_engine_options_are_usage_errors_that_name_them(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))} is .*; it must be"):
        read_engine_options(option)


def test_engine_options_are_read_from_numpy_numbers() -> None:
    given = {"kv_bits": np.int64(8), "prefill_step": np.int32(3)}
    assert read_engine_options(given) == EngineOptions(kv_bits=8, prefill_step=3)
    assert read_engine_options({"kv_bits": None}) == EngineOptions()


@pytest.mark.parametrize("name", ["top_k", "max_tokens", "dry_window", "penalty_window", "min_new_tokens"])
def test_a_whole_number_without_an_upper_limit_may_have_any_size(name: str) -> None:
    check(request_of(read({name: 10**400})), vocab_size=10)


def test_an_unknown_option_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown option temprature") as error:
        read({"temprature": 1})
    assert error.value.remedy == "temperature"


@pytest.mark.parametrize(
    "field",
    [
        {"logit_bias": {5: 1.0}},
        {"logit_bias": None},
        {"suppress_tokens": "x"},
        {"bad_words_ids": (1,)},
        {"sequence_bias": ((1, 2.0),)},
        {"dry_breakers": None},
        {"suppress_tokens": (1.5,)},
    ],
    ids=str,
)
def test_sampling_params_of_a_wrong_type_are_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(field))):
        check(Request(prompt=(1,), sampling=SamplingParams(**field)), vocab_size=10)


@pytest.mark.parametrize("field", [{"stop": "x"}, {"stop": None}, {"stop": (5,)}, {"stop_tokens": 5}], ids=str)
def test_request_fields_of_a_wrong_type_are_refused_by_name(field: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(field))):
        check(Request(prompt=(1,), **field), vocab_size=10)
