"""Search of the hub for models by words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from macllm.errors import MacllmError, NetworkError

from .names import ModelName, endpoint, is_offline, parse_name
from .transfer import Hub

_REMEDY = "check the network and HF_ENDPOINT; `macllm models ls --all` lists recommended models without it"


@dataclass(frozen=True)
class FoundModel:
    """A text-generating model with safetensors weights on the hub.

    `licence`, and `weights` as in "4-bit", are those of its tags; "" without one.
    """

    name: str
    downloads: int
    licence: str = ""
    weights: str = ""


def search(words: str, limit: int = 20) -> list[FoundModel]:
    """The most downloaded models whose names contain the words. Raises NetworkError, also when offline."""
    if is_offline():
        raise NetworkError("the hub cannot be searched: macllm is offline", remedy="unset HF_HUB_OFFLINE")
    asked = {"search": words, "filter": "safetensors", "pipeline_tag": "text-generation", "sort": "downloads"}
    address = f"{endpoint()}/api/models?{urlencode({**asked, 'direction': -1, 'limit': limit, 'full': 'true'})}"
    try:
        answer = json.loads(Hub(ModelName("models")).content(address))
        found = [_found(entry) for entry in answer]
    except MacllmError as error:
        raise NetworkError(
            f"{endpoint()} cannot be searched", cause=error.cause or error.message, remedy=_REMEDY
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(
            f"{endpoint()} gives an invalid answer to a search", cause=repr(error), remedy=_REMEDY
        ) from error
    return [model for model in found if model is not None][:limit]


def _found(entry: Mapping[str, Any]) -> FoundModel | None:
    """The model of an answer; None for a name that macllm cannot download."""
    tags = [tag for tag in entry.get("tags") or () if isinstance(tag, str)]
    try:
        name = str(parse_name(entry["id"]))
    except MacllmError:
        return None
    licence = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), "")
    weights = next((tag for tag in tags if tag.endswith("-bit")), "")
    downloads = entry.get("downloads")
    return FoundModel(name, downloads if isinstance(downloads, int) else 0, licence, weights)
