"""Options of a completion, converted from Python, JSON or numpy values to the types of their fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from macllm.errors import UsageError

from .contract import EngineOptions
from .request import Request, SamplingParams
from .sampling.ranges import shown

TokenId = Callable[[str], int | None]

SAMPLING_NAMES = frozenset(each.name for each in fields(SamplingParams))
_MOST_DIGITS = 20  # of a token id in a string
_IN_REQUESTS_ONLY = {"prompt", "messages", "sampling", "answer_start", "adapter"}
REQUEST_NAMES = frozenset(each.name for each in fields(Request)) - _IN_REQUESTS_ONLY
ENGINE_NAMES = frozenset(each.name for each in fields(EngineOptions)) - {"prefix_bytes"}  # only engines keep caches
_TOKENS = {"stop_tokens", "dry_breakers", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"}


def read(options: Mapping[str, Any], token_id: TokenId | None = None) -> dict[str, Any]:
    """The options that are not None, as fields of Request and SamplingParams.

    `token_id` turns the text of a token into its id, for options that name tokens. Raises UsageError for an
    unknown option and for a value of a wrong type; ranges are left to `defaults.check`.
    """
    read_options: dict[str, Any] = {}
    known = SAMPLING_NAMES | REQUEST_NAMES
    for name, value in options.items():
        if name not in known:
            from difflib import get_close_matches

            close = get_close_matches(str(name), known, n=1)
            raise UsageError(f"unknown option {name}", remedy=close[0] if close else None)
        if value is not None:
            read_options[name] = _converted(name, value, token_id)
    return read_options


def read_engine_options(options: Mapping[str, Any]) -> EngineOptions:
    """`EngineOptions` of the values that are not None. Raises UsageError for an invalid one."""
    return EngineOptions(**{name: _plain(value) for name, value in options.items() if value is not None})


def _converted(name: str, value: Any, token_id: TokenId | None) -> Any:
    if name in _TOKENS:
        tokens = read_tokens(name, value, token_id)
        return frozenset(tokens) if name == "stop_tokens" else tokens
    match name:
        case "stop":
            return read_stop(value)
        case "logit_bias":
            return read_biases(value)
        case "bad_words_ids":
            return read_bad_words(value)
        case "sequence_bias":
            return read_sequence_biases(value)
        case "tools":
            return _listed(name, value, "a list of tools")
        case "variables" if not isinstance(value, Mapping):
            raise UsageError(
                f"variables is {shown(value)}; it must be a mapping from names to values for the chat template"
            )
        case "raw" if not isinstance(value, bool):
            raise UsageError(f"raw is {shown(value)}; it must be True or False")
        case "forced_bos_token_id" if isinstance(value, str):
            return _token(name, value, token_id)
    return _plain(value)


def read_stop(value: Any) -> tuple[str, ...]:
    """One stop string or several. Raises UsageError for anything but strings."""
    strings = (value,) if isinstance(value, str) else _listed("stop", value, "a string or a list of strings")
    for text in strings:
        if not isinstance(text, str):
            raise UsageError(f"stop has {shown(text)}; it must be a string or a list of strings")
    return tuple(strings)


def read_tokens(name: str, value: Any, token_id: TokenId | None = None) -> tuple[int, ...]:
    """One token or several, each an id or its text. Raises UsageError for other values and unknown tokens."""
    one = isinstance(value, str) or _is_whole(value)
    tokens = (value,) if one else _listed(name, value, "a token or a list of tokens")
    return tuple(_token(name, token, token_id) for token in tokens)


def read_bad_words(value: Any) -> tuple[tuple[int, ...], ...]:
    """Sequences of tokens. Raises UsageError for anything else."""
    listed = _listed("bad_words_ids", value, "a list of lists of token ids")
    return tuple(_sequence("bad_words_ids", each) for each in listed)


def read_biases(value: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token and bias, from pairs or a mapping (keys may be strings of digits, as in JSON)."""
    allowed = "a mapping from token ids to numbers"
    biases: list[tuple[int, float]] = []
    for pair in value.items() if isinstance(value, Mapping) else _listed("logit_bias", value, allowed):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(f"logit_bias has {shown(pair)}; it must be {allowed}")
        token, bias = pair
        if isinstance(token, str) and token.strip().isdecimal() and len(token) <= _MOST_DIGITS:
            token = int(token)
        if not _is_whole(token):
            raise UsageError(f"logit_bias has the key {shown(token)}; it must be {allowed}")
        biases.append((int(token), _bias("logit_bias", token, bias)))
    return tuple(biases)


def read_sequence_biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Pairs of token sequence and bias, from transformers' forms: a mapping, or lists [[ids], bias]."""
    allowed = "a list of pairs of a list of token ids and a number"
    biases: list[tuple[tuple[int, ...], float]] = []
    for pair in value.items() if isinstance(value, Mapping) else _listed("sequence_bias", value, allowed):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(f"sequence_bias has {shown(pair)}; it must be {allowed}")
        tokens = _sequence("sequence_bias", pair[0])
        biases.append((tokens, _bias("sequence_bias", list(tokens), pair[1])))
    return tuple(biases)


def _bias(name: str, key: Any, bias: Any) -> float:
    if isinstance(bias, bool) or not isinstance(bias, Real):
        raise UsageError(f"{name} of {key} is {shown(bias)}; it must be a number")
    try:
        return float(bias)
    except OverflowError:
        raise UsageError(f"{name} of {key} is {shown(bias)}; it must be any finite number") from None


def _sequence(name: str, value: Any) -> tuple[int, ...]:
    tokens = _listed(name, value, "lists of token ids")
    if not tokens:
        raise UsageError(f"{name} has an empty list; it must be lists of token ids")
    return tuple(_token(name, token, None) for token in tokens)


def _token(name: str, token: Any, token_id: TokenId | None) -> int:
    if isinstance(token, str) and token_id is not None:
        found = token_id(token)
        if found is None:
            raise UsageError(f"{name} has the text {shown(token)}, which is not a token of this model")
        return found
    if not _is_whole(token):
        kinds = "token ids" if token_id is None else "token ids, or tokens as text"
        raise UsageError(f"{name} has {shown(token)}; it must be {kinds}")
    return int(token)


def _listed(name: str, value: Any, allowed: str) -> tuple[Any, ...]:
    if not isinstance(value, str | bytes | Mapping) and isinstance(value, Iterable):
        with suppress(TypeError):  # a 0-dimensional array claims to be iterable
            return tuple(value)
    raise UsageError(f"{name} is {shown(value)}; it must be {allowed}")


def _plain(value: Any) -> Any:
    """Convert numpy numbers to Python's; other values are left to the check of ranges."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
