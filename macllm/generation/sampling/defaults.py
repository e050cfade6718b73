"""Default sampling parameters (generation_config.json, else ours), and the check of given ones."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from macllm.errors import UsageError
from macllm.nn.info import ModelInfo

from ..options import read_bad_words, read_biases, read_sequence_biases, read_stop, read_tokens
from ..request import Request, SamplingParams
from . import config_file
from .ranges import COLDEST, EARLY_STOPPING, OPTIONAL, RANGES, check_range, shown

log = logging.getLogger("macllm")

MAX_TOKENS = 256  # of a completion, where neither the user nor the checkpoint says
# For a checkpoint that says nothing: cooler than its own distribution, and without the tail that sampling
# token after token would sooner or later step into.
OURS = SamplingParams(temperature=0.7, min_p=0.05)
_told: deque[Mapping[str, Any]] = deque(maxlen=16)  # the generation configs whose notes were logged
_FILTERS = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p"})


def defaults(
    generation_config: Mapping[str, Any] | None, *, encoder_decoder: bool = False, vocab_size: int | None = None
) -> SamplingParams:
    """Default sampling parameters of a checkpoint: its `generation_config.json`, else ours.

    A file that names any filter or temperature is taken as it is, nothing of ours mixed in. One that says
    `do_sample: false`, and an encoder-decoder whose file does not ask for sampling, get the likeliest token.
    Values that cannot be taken are left out (`config_file.read` has notes on them).
    """
    file = generation_config or {}
    named = config_file.read(file, vocab_size).sampling
    samples = file.get("do_sample")
    if isinstance(samples, str):
        samples = samples.lower() == "true"
    if (samples is not None and not samples) or (encoder_decoder and not samples):
        kept = {name: value for name, value in named.items() if name not in _FILTERS}
        return SamplingParams(temperature=0.0, **kept)
    if samples or not _FILTERS.isdisjoint(named):
        return SamplingParams(**named)
    return dataclasses.replace(OURS, **named)


def default_sampling(info: ModelInfo) -> SamplingParams:
    """Default sampling parameters of a model. Settings that are left out are logged once."""
    if not any(file is info.generation_config for file in _told):
        _told.append(info.generation_config)
        for note in config_file.read(info.generation_config, info.vocab_size).notes:
            log.warning("%s", note)
        beams = config_file.read(info.generation_config).beams
        if beams and info.kind == "decoder":
            log.warning(
                "generation_config.json asks for num_beams = %d; a decoder gets them only if they are asked for",
                beams["num_beams"],
            )
    text_to_text = info.kind == "encoder-decoder"
    return defaults(info.generation_config, encoder_decoder=text_to_text, vocab_size=info.vocab_size)


def default_beams(info: ModelInfo, request: Request) -> dict[str, Any]:
    """Beam search of a request that does not set it: that of an encoder-decoder's checkpoint.

    Empty for others, and where a token is drawn, or log-probabilities are asked for.
    """
    if info.kind != "encoder-decoder" or request.sampling.temperature > 0 or request.logprobs is not None:
        return {}
    return config_file.read(info.generation_config).beams


def default_max_tokens(info: ModelInfo, request: Request, prompt_tokens: Callable[[], int]) -> int:
    """Most tokens of a completion without a limit: MAX_TOKENS, or fewer by generation_config.json.

    As in transformers `max_new_tokens` goes before `max_length`, which counts what the new tokens follow too: the
    prompt (`prompt_tokens`, counted only if needed) or the first tokens of an encoder-decoder's decoder.
    """
    config = config_file.read(info.generation_config)
    most = config.max_new_tokens
    if most is None and config.max_length is not None:
        if info.kind == "encoder-decoder":
            before = 1 + (request.sampling.forced_bos_token_id is not None)
        else:
            before = prompt_tokens()
        most = config.max_length - before
        if most < 1:
            _tell_too_short(config.max_length, before)
            most = None
    return MAX_TOKENS if most is None else min(most, MAX_TOKENS)


@lru_cache
def _tell_too_short(max_length: int, before: int) -> None:
    log.warning(
        "generation_config.json: max_length = %d is left out: %d tokens come before the answer", max_length, before
    )


def new_seed() -> int:
    """A random seed."""
    return int.from_bytes(os.urandom(4))


def check(request: Request, vocab_size: int | None = None) -> None:
    """Raise UsageError for a value of a wrong type or outside its range, naming both."""
    _check_fields(request)
    _check_fields(request.sampling)
    sampling = request.sampling
    if 0 < sampling.temperature < COLDEST:
        raise UsageError(
            f"temperature is {sampling.temperature}; it must be 0, or from {COLDEST:g} to 100",
            remedy="temperature 0 takes the likeliest token",
        )
    _check_beams(request)
    if "" in read_stop(request.stop):
        raise UsageError("a stop string is empty", remedy="leave it out")
    _check_biases("logit_bias", read_biases(sampling.logit_bias))
    _check_biases("sequence_bias", read_sequence_biases(sampling.sequence_bias))
    for name, tokens in _named_tokens(request):
        for token in tokens:
            if token < 0 or (vocab_size is not None and token >= vocab_size):
                below = "" if vocab_size is None else f" from 0 to {vocab_size - 1}"
                raise UsageError(
                    f"{name} has the token {shown(token)}; this model's tokens are{below or ' not negative'}"
                )


def _check_beams(request: Request) -> None:
    """Raise UsageError for settings of beam search that contradict each other or change nothing."""
    count, early = request.num_beams, request.early_stopping
    if (isinstance(early, int) and not isinstance(early, bool)) or early not in EARLY_STOPPING:
        raise UsageError(f'early_stopping is {shown(early)}; it must be True, False or "never"')
    if request.num_return_sequences > count:
        raise UsageError(f"num_return_sequences is {request.num_return_sequences}, more than num_beams, {count}")
    if count == 1:
        for name in ("length_penalty", "early_stopping"):
            if getattr(request, name) != getattr(Request, name):
                raise UsageError(f"{name} has no effect", cause="num_beams is 1", remedy="num_beams 4, for example")
        return
    if request.sampling.temperature > 0:
        cause = f"temperature is {request.sampling.temperature:g}, and beams take the likeliest tokens"
        raise UsageError("beam search does not sample", cause=cause, remedy="temperature 0, or num_beams 1")
    if request.logprobs is not None:
        raise UsageError("log-probabilities of tokens are not reported for beams", remedy="num_beams 1")


def _check_fields(owner: Request | SamplingParams) -> None:
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        several = isinstance(field.default, tuple | frozenset) and field.name != "prompt"
        if several and not isinstance(value, tuple | list | frozenset | set):
            raise UsageError(f"{field.name} is {shown(value)}; in a {type(owner).__name__} it must be a tuple")
        if field.name in RANGES and not (value is None and field.name in OPTIONAL):
            check_range(field.name, value)


def _check_biases(name: str, biases: Iterable[tuple[object, float]]) -> None:
    for key, bias in biases:
        if math.isnan(bias) or bias == math.inf:
            raise UsageError(f"{name} of {key} is {bias}; it must be any finite number, or -inf to ban it")


def _named_tokens(request: Request) -> Iterator[tuple[str, Iterable[int]]]:
    """The tokens that options name, by the option."""
    sampling = request.sampling
    yield "logit_bias", (token for token, _ in read_biases(sampling.logit_bias))
    yield "sequence_bias", (token for tokens, _ in read_sequence_biases(sampling.sequence_bias) for token in tokens)
    yield "bad_words_ids", (token for words in read_bad_words(sampling.bad_words_ids) for token in words)
    yield "stop_tokens", read_tokens("stop_tokens", request.stop_tokens)
    if sampling.forced_bos_token_id is not None:
        yield "forced_bos_token_id", (sampling.forced_bos_token_id,)
    for name in ("dry_breakers", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
        yield name, read_tokens(name, getattr(sampling, name))
