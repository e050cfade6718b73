"""KV caches on disk: one safetensors file, which only the same model can load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from macllm.errors import CheckpointError, UsageError
from macllm.nn.models import DecoderLM, EncoderDecoderLM
from macllm.nn.state.cache import Cache
from macllm.ops.kv import Dense
from macllm.weights.safetensors import load_file, read_metadata, save_file

FORMAT = "macllm-cache-2"
CachingModel = DecoderLM | EncoderDecoderLM


def save_cache(model: CachingModel, cache: Cache, path: str | Path, tokens: Sequence[int] = ()) -> None:
    """Write `cache` and the `tokens` it was computed from, atomically."""
    tensors: dict[str, mx.array] = {"tokens": mx.array(np.array(tokens, dtype=np.int32))}
    for i, layer in enumerate(cache.layers):
        tensors |= {f"layers.{i}.{n}": part for n, part in enumerate(layer.filled())}
    for i, kv in enumerate(cache.cross):
        tensors |= {f"cross.{i}.keys": kv.keys, f"cross.{i}.values": kv.values}
    if cache.source_lengths is not None:
        tensors["source_lengths"] = cache.source_lengths
    about = {
        "fingerprint": fingerprint(model),
        "length": cache.length,
        "head_dims": [layer.head_dim for layer in cache.layers],
        "kv_bits": cache.kv_bits,
        "left_padding": cache.left_padding,
        "max_context": cache.max_context,
    }
    save_file(tensors, Path(path), {"format": FORMAT, "cache": json.dumps(about)})


def load_cache(model: CachingModel, path: str | Path) -> tuple[Cache, list[int]]:
    """The cache in `path` and the tokens it was computed from.

    Raises CheckpointError for a file that is damaged or not a cache, UsageError for another model's cache.
    """
    path = Path(path)
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a saved cache")
    tensors = load_file(path)
    try:
        about = json.loads(metadata["cache"])
        if about["fingerprint"] != fingerprint(model):
            raise UsageError(f"{path} was computed by another model", remedy="compute it again with this one")
        cache = _rebuild(model, tensors, about)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged cache", cause=repr(error), remedy="compute it again") from None
    mx.eval(cache.state)
    return cache, np.array(tensors["tokens"]).tolist()


def fingerprint(model: CachingModel) -> str:
    """Fingerprint of a model: a hash of its spec and of the first values of every weight."""
    digest = hashlib.sha256(repr(model.spec).encode())
    for name, weight in sorted(dict(tree_flatten(model.parameters())).items()):
        first = np.array(weight.reshape(-1)[:4].astype(mx.float32))
        digest.update(name.encode() + first.tobytes())
    return digest.hexdigest()


def _rebuild(model: CachingModel, tensors: dict[str, mx.array], about: dict[str, Any]) -> Cache:
    padding = tuple(about["left_padding"]) if about["left_padding"] else None
    cache = model.empty_cache(about["max_context"], about["kv_bits"], padding)
    rows = []
    for i in range(len(cache.layers)):
        rows.append(tuple(tensors[name] for name in sorted(tensors) if name.startswith(f"layers.{i}.")))
        if f"cross.{i}.keys" in tensors:
            cache.cross.append(Dense(tensors[f"cross.{i}.keys"], tensors[f"cross.{i}.values"]))
    cache.restore(rows, about["length"], about["head_dims"])
    cache.source_lengths = tensors.get("source_lengths")
    return cache
