"""Rotary positions for a longer context: the changed parameters of a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from macllm.errors import UsageError

from .config import Config, context_length, rope_parameters

_KINDS = ("default", "linear", "yarn")


def extended(text: Mapping[str, Any], length: int = 0, scaling: str = "keep", base: float = 0.0) -> dict[str, Any]:
    """The text config for contexts of `length` tokens (0: as before) with another `base` (0: the same).

    `scaling` "yarn" (arXiv:2309.00071) or "linear" (arXiv:2306.15595) stretches the positions by the ratio of `length`
    to the context that the model was trained for; "keep" leaves their scaling as it is. Written in the spelling that
    the config uses. Raises UsageError for a model without rotary positions, with several kinds of them or with a
    scaling of another type, and for a `length` that is not longer.
    """
    before = _parameters(text)
    trained = int(before["original_max_position_embeddings"])
    now = context_length(text) or trained
    if length and length <= now:
        cause = f"the model has a context of {now} tokens already"
        raise UsageError(f"context_length cannot be {length}", cause=cause, remedy="a larger one")
    if length and scaling == "keep" and before["rope_type"] != "default":
        cause = f"the model's own scaling, {before['rope_type']}, reaches {now} tokens"
        raise UsageError("rope_scaling cannot be keep", cause=cause, remedy="--rope-scaling yarn")
    after = {key: value for key, value in before.items() if key != "original_max_position_embeddings"}
    if scaling != "keep":
        kept = {key: after[key] for key in ("rope_theta", "partial_rotary_factor") if key in after}
        after = kept | {"rope_type": scaling, "factor": length / trained}
    if after["rope_type"] == "yarn":
        after["original_max_position_embeddings"] = trained
    if base:
        after["rope_theta"] = float(base)
    changed = dict(text)
    # As in vLLM, the positions of linear scaling are counted before it.
    _write(changed, after, trained if length and after["rope_type"] == "linear" else length)
    return changed


def _parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    """The RoPE parameters of all layers. Raises UsageError if there are none or several."""
    config = Config(text)
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [key for key, value in given.items() if isinstance(value, Mapping)]
    if kinds or config.get("rope_local_base_freq"):
        raise UsageError(
            "the context of this model cannot be extended",
            cause="its layers have several kinds of rotary positions",
            remedy="a model with one",
        )
    if not config.get("max_position_embeddings") or not (given or config.get("rope_theta")):
        raise UsageError(
            "the context of this model cannot be extended",
            cause=f"model_type {text.get('model_type')!r} has no rotary positions",
            remedy="a model with rotary positions, such as a Llama or Qwen",
        )
    found = rope_parameters(config)
    if found["rope_type"] not in _KINDS:
        raise UsageError(
            "the context of this model cannot be extended",
            cause=f"its rotary positions have the scaling {found['rope_type']} already",
            remedy="a model without one",
        )
    return found


def _write(text: dict[str, Any], rope: dict[str, Any], length: int) -> None:
    """Put RoPE parameters into a config, in transformers 5's spelling if it is used, else 4's."""
    for name in ("max_position_embeddings", "model_max_length"):
        if length and (name in text or name == "max_position_embeddings"):
            text[name] = length
    if text.get("rope_parameters"):
        text["rope_parameters"] = rope
        text.pop("rope_scaling", None)
        return
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope if rope["rope_type"] != "default" else None
