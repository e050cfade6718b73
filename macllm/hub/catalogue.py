"""The dated list of recommended models in `models/catalogue.json`, and the best for a machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from macllm.errors import ModelNotFoundError
from macllm.files import read_json

from .fit import needed_bytes
from .shape import LayerCache, ModelShape

FIT_TOKENS = 4096
"""Context in tokens that a recommended model must have room for."""
_FIT_SHARE = 0.7  # of the memory that a model may use: other programs need some too


@dataclass(frozen=True)
class Recommended:
    """A model of the catalogue.

    `size_bytes` is that of the weights, `active_bytes` of them are read for each token.
    """

    name: str
    parameters: int
    size_bytes: int
    active_bytes: int
    shape: ModelShape
    licence: str
    use: str


@dataclass(frozen=True)
class Catalogue:
    """Recommended models by size, and the day on which they were chosen."""

    date: date
    models: tuple[Recommended, ...]


@cache
def catalogue() -> Catalogue:
    """The catalogue of this installation. Raises ModelNotFoundError if it is missing or damaged."""
    package = find_spec("macllm_models")
    path = Path(*(package.submodule_search_locations or ())[:1] if package else (), "catalogue.json")
    try:
        content = read_json(path)
        models = tuple(_recommended(entry) for entry in content["models"])
        return Catalogue(date.fromisoformat(content["date"]), models)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFoundError(
            "the list of recommended models cannot be read", cause=f"{path}: {error!r}", remedy="install macllm again"
        ) from error


def best_for(memory_bytes: int, count: int = 3) -> list[Recommended]:
    """The largest models that fit into 70 % of `memory_bytes` with 4096 tokens, largest first."""
    fitting = [
        model
        for model in catalogue().models
        if needed_bytes(model.size_bytes, model.shape, FIT_TOKENS) <= _FIT_SHARE * memory_bytes
    ]
    return fitting[-count:][::-1]


def _recommended(entry: dict) -> Recommended:
    parameters, size = int(entry["parameters"]), int(entry["size_bytes"])
    cached = LayerCache(2 * int(entry["key_value_heads"]) * int(entry["head_dim"]), None)
    active = int(entry.get("active_parameters", parameters))
    shape = ModelShape(
        family=entry["family"],
        context_tokens=int(entry["context_tokens"]),
        layers=int(entry["layers"]),
        quantization=entry["quantization"],
        cache=(cached,) * int(entry["layers"]),
        has_experts=active < parameters,
    )
    return Recommended(
        entry["id"], parameters, size, size * active // parameters, shape, entry["licence"], entry["use"]
    )
