"""Generation settings of a checkpoint, from generation_config.json and config.json.

The order is that of transformers' `GenerationConfig.from_model_config`: generation_config.json, the outer config.json,
its text config, and, only without a generation_config.json, the defaults of the config's class. Beside a
generation_config.json, the other files give only token ids, no sampling settings.
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
# Further settings in config.json of older checkpoints without a generation_config.json.
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens"),
    *("num_beams", "diversity_penalty", "penalty_alpha", "encoder_repetition_penalty", "num_return_sequences"),
)
_PARTS = ("decoder", "generator", "text_config")


def generation_config(config: Mapping[str, Any], file: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """The generation config of a checkpoint: config.json, updated by `file`, its generation_config.json.

    `kind` is the `model_type` of the text config. Invalid token ids are ignored with a warning in the log; a list
    without valid ids counts as absent.
    """
    inner = next((config[part] for part in _PARTS if isinstance(config.get(part), Mapping)), {})
    sources = [file or {}, config, inner]
    if file is None:
        sources.append(DEFAULTS.get(kind, {}))
    made = dict(file or {})
    for key in (*_TOKENS, *(() if file is not None else (*_FORCED, *_SAMPLING))):
        values = (source[key] for source in sources if source.get(key) is not None)
        if key not in _SAMPLING:
            values = (ids for value in values if (ids := _ids(key, value)) is not None)
        found = next(values, None)
        if found is not None or key in made:
            made[key] = found
    for key in _FORCED:
        if made.get(key) is not None:
            made[key] = _ids(key, made[key])
    return {key: value for key, value in made.items() if value is not None or (file is not None and key in file)}


def decoder_start(generation: Mapping[str, Any]) -> int | None:
    """The token that the decoder of an encoder-decoder begins with, by its generation config."""
    starts = (generation.get(f"{name}_token_id") for name in ("decoder_start", "bos", "pad"))
    return next((token for token in starts if token is not None), None)


def _ids(key: str, value: Any) -> int | list[int] | None:
    """Token ids as ints: one, or a list if the value is a list and the key may have several."""
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
    log.warning("%s has %r, which is not a token id: ignored", key, value)
    return None
