"""The part of a checkpoint's configs that says how its answers begin and end.

The order is that of transformers' `GenerationConfig.from_model_config`: generation_config.json, the outer config.json,
its text half, and, only where there is no generation_config.json, the defaults of the config's class. A
generation_config.json leaves only tokens to the other files, no wishes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from macllm.errors import CheckpointError

from .defaults import DEFAULTS, whole

log = logging.getLogger("macllm")

_TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
_LISTED = frozenset(("eos_token_id", "forced_eos_token_id"))
# What else older checkpoints say of generation in config.json, where they have no generation_config.json.
_WISHES = (
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens"),
    *("num_beams", "diversity_penalty", "penalty_alpha", "encoder_repetition_penalty", "num_return_sequences"),
)
_HALVES = ("decoder", "generator", "text_config")


def generation_config(config: Mapping[str, Any], file: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """The generation config of a checkpoint: config.json, updated by `file`, its generation_config.json.

    `kind` is the `model_type` of the text half. A token id that is none is left out, with a note in the log; a list
    without any is as good as absent.
    """
    inner = next((config[half] for half in _HALVES if isinstance(config.get(half), Mapping)), {})
    sources = [file or {}, config, inner]
    if file is None:
        sources.append(DEFAULTS.get(kind, {}))
    made = dict(file or {})
    for key in (*_TOKENS, *(() if file is not None else (*_FORCED, *_WISHES))):
        said = (source[key] for source in sources if source.get(key) is not None)
        if key not in _WISHES:
            said = (ids for value in said if (ids := _ids(key, value)) is not None)
        found = next(said, None)
        if found is not None or key in made:
            made[key] = found
    for key in _FORCED:
        if made.get(key) is not None:
            made[key] = _ids(key, made[key])
    return {key: value for key, value in made.items() if value is not None or (file is not None and key in file)}


def _ids(key: str, value: Any) -> int | list[int] | None:
    """Token ids as ints: one, or as many as a list has where the key can hold several."""
    ids = [token for given in (value if isinstance(value, list) else [value]) if (token := _id(key, given)) is not None]
    if isinstance(value, list) and key in _LISTED:
        return ids or None
    return ids[0] if ids else None


def _id(key: str, value: Any) -> int | None:
    try:
        token = whole(key, value)
    except CheckpointError:
        token = -1
    if token is not None and token >= 0:
        return token
    log.warning("%s has %r, which is no token: left out", key, value)
    return None
