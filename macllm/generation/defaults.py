"""What is sampled with when nobody says: the checkpoint's own wishes, then ours. And what can be said at all."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from macllm.errors import UsageError

from .request import Request, SamplingParams

# For a checkpoint that says nothing: cooler than its own distribution, and without the tail that sampling
# token after token would sooner or later step into.
OURS = SamplingParams(temperature=0.7, min_p=0.05)
LARGEST_SEED = 2**32 - 1

_FROM_FILE = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

# name: smallest, whether that itself is allowed, largest
_RANGES: dict[str, tuple[float, bool, float]] = {
    "temperature": (0, True, 100),
    "top_k": (0, True, math.inf),
    "top_p": (0, True, 1),
    "min_p": (0, True, 1),
    "typical_p": (0, True, 1),
    "xtc_probability": (0, True, 1),
    "xtc_threshold": (0, True, 1),
    "repetition_penalty": (0, False, 100),
    "presence_penalty": (-100, True, 100),
    "frequency_penalty": (-100, True, 100),
    "penalty_window": (0, True, math.inf),
    "dry_multiplier": (0, True, 100),
    "dry_base": (1, True, 100),
    "dry_allowed_length": (1, True, math.inf),
    "dry_window": (0, True, math.inf),
    "max_tokens": (1, True, math.inf),
    "logprobs": (0, True, math.inf),
    "max_context": (1, True, math.inf),
    "prefill_step": (1, True, math.inf),
    "seed": (0, True, LARGEST_SEED),
}
_OPTIONAL = {"seed", "logprobs", "max_context", "max_tokens"}
_WHOLE = {"top_k", "penalty_window", "dry_allowed_length", "dry_window", "prefill_step"} | _OPTIONAL
_COLDEST = 1e-4  # colder than this, logits / temperature can leave float32


def defaults(generation_config: Mapping[str, Any] | None, *, encoder_decoder: bool = False) -> SamplingParams:
    """How a checkpoint wants to be sampled: its `generation_config.json`, and where that says nothing, ours.

    A file that names any filter or temperature is taken as it is, nothing of ours mixed in. One that says
    `do_sample: false`, and an encoder-decoder whose file does not ask for sampling, get the likeliest token.
    """
    file = dict(generation_config or {})
    named = {name: file[name] for name in _FROM_FILE if file.get(name) is not None}
    if named.get("top_k") == -1:  # as other programs write "all"
        named["top_k"] = 0
    samples = file.get("do_sample")
    if samples is False or (encoder_decoder and not samples):
        params = dataclasses.replace(SamplingParams(temperature=0.0), **_only_penalties(named))
    elif named.keys() - {"repetition_penalty", "presence_penalty", "frequency_penalty"} or samples:
        params = SamplingParams(**named)
    else:
        params = dataclasses.replace(OURS, **named)
    banned = sorted(_banned(file))
    return dataclasses.replace(params, logit_bias=tuple((token, -math.inf) for token in banned)) if banned else params


def new_seed() -> int:
    """A seed nobody chose."""
    return int.from_bytes(os.urandom(4))


def check(request: Request, vocab_size: int | None = None) -> None:
    """Raises UsageError for a value outside its range, naming both."""
    for owner in (request, request.sampling):
        for field in dataclasses.fields(owner):
            value = getattr(owner, field.name)
            if field.name in _RANGES and not (value is None and field.name in _OPTIONAL):
                _check_range(field.name, value)
    sampling = request.sampling
    if 0 < sampling.temperature < _COLDEST:
        raise UsageError(
            f"temperature is {sampling.temperature}; it can be 0, or from {_COLDEST:g} to 100",
            remedy="temperature 0 takes the likeliest token",
        )
    if request.kv_bits not in (None, 4, 8):
        raise UsageError(f"kv_bits is {request.kv_bits}; it can be 4, 8 or None (not quantized)")
    if "" in request.stop:
        raise UsageError("a stop string is empty", remedy="leave it out")
    for token, bias in sampling.logit_bias:
        if math.isnan(bias) or bias == math.inf:
            raise UsageError(f"logit_bias of token {token} is {bias}; it can be any finite number, or -inf to ban it")
    named = {
        "logit_bias": [token for token, _ in sampling.logit_bias],
        "dry_breakers": sampling.dry_breakers,
        "stop_tokens": request.stop_tokens,
    }
    for name, tokens in named.items():
        for token in tokens:
            if token < 0 or (vocab_size is not None and token >= vocab_size):
                below = "" if vocab_size is None else f" from 0 to {vocab_size - 1}"
                raise UsageError(f"{name} has the token {token}; this model's tokens are{below or ' not negative'}")


def _check_range(name: str, value: Any) -> None:
    low, low_allowed, high = _RANGES[name]
    whole = name in _WHOLE
    if isinstance(value, int if whole else int | float) and not isinstance(value, bool):
        number = float(value)
        if (number >= low if low_allowed else number > low) and number <= high:
            return
    kind = "a whole number" if whole else "a number"
    lower = f"from {low:g}" if low_allowed else f"above {low:g}"
    upper = "" if high == math.inf else f" to {high:.10g}" if low_allowed else f" and at most {high:.10g}"
    raise UsageError(f"{name} is {value!r}; it can be {kind} {lower}{upper}")


def _only_penalties(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name.endswith("_penalty")}


def _banned(file: Mapping[str, Any]) -> set[int]:
    """Tokens that the checkpoint must never say: `suppress_tokens`, and the `bad_words_ids` of one token."""
    single = {words[0] for words in file.get("bad_words_ids") or () if len(words) == 1}
    return single | set(file.get("suppress_tokens") or ())
