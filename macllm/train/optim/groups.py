"""Kinds of weights: rates relative to the common one, weight decay, and the matrices that Muon takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import mlx.core as mx

from macllm.errors import UsageError
from macllm.nn.lora import LAYER

from ..config import FinetuneConfig, TrainConfig
from ..contract import Arrays

_EMBEDDING = re.compile(r"(.*_)?embed(ding)?s?(_(tokens|in|table)(_per_layer)?)?|wte|wpe")
_HEADS = frozenset({"head", "lm_head", "embed_out"})
# Weights that are no matrices whatever their shape: vectors stacked over experts or heads, rates of state spaces.
_VECTORS = re.compile(r".*\.(?:[^.]*norm[^.]*\.[^.]+|[^.]*bias|A_log)", re.IGNORECASE)
_CONVOLUTION = re.compile(r".*conv[^.]*\.weight")
_LORA_B = ".lora_b"


def is_embedding(name: str) -> bool:
    """True for weights of embeddings, a tied head's matrix and factors of adapters among them."""
    return any(map(_EMBEDDING.fullmatch, name.split(".")))


def is_hidden(name: str, weight: mx.array) -> bool:
    """True for matrices between embeddings and head, stacks of them and factors of adapters."""
    inner = not is_embedding(name) and not _HEADS.intersection(name.split("."))
    return inner and weight.ndim in (2, 3) and not (_VECTORS.fullmatch(name) or _CONVOLUTION.fullmatch(name))


def decays(name: str, weight: mx.array, everything: bool) -> bool:
    """True for weights with weight decay: matrices other than embeddings, or `everything`."""
    return everything or (weight.ndim > 1 and not is_embedding(name) and not _VECTORS.fullmatch(name))


def rate_factors(config: TrainConfig, weights: Arrays, names: Iterable[str]) -> dict[str, float]:
    """Learning rate of each of the trained `weights`, relative to the common one.

    `names` are those of all weights of the model. Raises UsageError for a setting of rates that would change nothing.
    """
    factors = _layer_factors(config.layer_decay, weights, names)
    if config.layer_decay < 1 and len(set(factors.values())) == 1:
        raise _useless("layer_decay", "all trained weights are at the same depth")
    own = {"embedding_rate": [name for name in weights if is_embedding(name)], "adamw_rate": _others(config, weights)}
    for setting in ("adamw_rate", "embedding_rate"):  # an embedding has the latter
        rate = getattr(config, setting)
        if rate and not own[setting]:
            raise _useless(setting, "no such weights are trained")
        factors |= {name: rate / config.learning_rate for name in own[setting] if rate}
    ratio = config.lora_plus_ratio if isinstance(config, FinetuneConfig) else 1.0
    given = set(own["adamw_rate"]) if config.adamw_rate else set[str]()
    faster = [name for name in weights if name not in given and _is_raised(name, weights[name])]
    if ratio != 1.0 and not faster:
        raise _useless("lora_plus_ratio", "no B of a layer without a rate of its own is trained")
    return factors | {name: factors[name] * ratio for name in faster}


def _is_raised(name: str, weight: mx.array) -> bool:
    """True for weights whose rate LoRA+ raises: B and, as in PEFT, vectors, but not on embeddings."""
    return not is_embedding(name) and (name.endswith(_LORA_B) or weight.ndim == 1)


def _others(config: TrainConfig, weights: Arrays) -> list[str]:
    """The weights that Muon leaves to AdamW."""
    return [name for name, w in weights.items() if config.optimizer == "muon" and not is_hidden(name, w)]


def _layer_factors(decay: float, weights: Arrays, names: Iterable[str]) -> dict[str, float]:
    """`decay` to the power of each weight's distance to the head, as in BEiT (arXiv:2106.08254).

    The distance of the last layer is 1, of embeddings the number of layers plus 1, of all outside of layers 0.
    """
    depths: dict[str, int] = {}
    for match in filter(None, map(LAYER.match, names)):
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return {name: decay ** _distance(name, depths) for name in weights}


def _distance(name: str, depths: Mapping[str, int]) -> int:
    if is_embedding(name):
        return max(depths.values(), default=0) + 1
    match = LAYER.match(name)
    return depths[match[1]] - int(match[2]) if match else 0


def _useless(setting: str, cause: str) -> UsageError:
    return UsageError(f"{setting} has no effect", cause=cause, remedy=f"leave {setting} out")
