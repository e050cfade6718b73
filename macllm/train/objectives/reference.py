"""Log-probabilities of answers under the reference: the model with the weights that a run began with."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from macllm.files import replacing
from macllm.nn import lora
from macllm.nn.protocol import LanguageModel
from macllm.train.config import FinetuneConfig
from macllm.train.events import Advanced
from macllm.train.inference import evaluating
from macllm.train.render import Example

from .clm import Batch, collate
from .pairs import log_probabilities

NAME = "reference.npz"
"""Name of the file in a run's folder."""
ROUNDING = 1e-4
"""Log-ratios, in nats, that may be rounding: in batches of other shapes, sums have other last bits."""


@contextmanager
def starting(model: LanguageModel) -> Iterator[None]:
    """A block in which a model without a training step is the reference.

    Without an adapter, its trained weights are in float32, as in training.
    """
    module = cast("nn.Module", model)
    if lora.applied(module):
        with lora.disabled(module):
            yield
        return
    loaded: list[tuple[str, mx.array]] = tree_flatten(module.trainable_parameters())  # type: ignore[assignment]
    module.update(tree_unflatten([(name, weight.astype(mx.float32)) for name, weight in loaded]))
    try:
        yield
    finally:
        module.update(tree_unflatten(loaded))


def live(model: LanguageModel, batch: Batch) -> mx.array:
    """Log-probabilities of a batch's answers under the base of an adapted model: (B,) float32.

    They have no gradients.
    """
    with lora.disabled(cast("nn.Module", model)), evaluating(model):
        return mx.stop_gradient(log_probabilities(model, batch)[0])


def is_stored(config: FinetuneConfig, examples: int) -> bool:
    """True if a run with `examples` computes the log-probabilities before its first step."""
    if config.reference != "auto":
        return config.reference == "stored"
    seen = config.iters * config.batch_size * config.grad_accumulation_steps
    return config.method == "full" or (seen >= examples if config.iters else config.epochs >= 1)


def stored(
    model: LanguageModel, groups: Sequence[Sequence[Example]], size: int, folder: Path | None, base: str
) -> Generator[Advanced, None, list[np.ndarray]]:
    """Log-probabilities of the answers of groups of examples, (N,) float32 each, yielding progress.

    They go through the model in batches of `size` examples of similar lengths, of one group each, and into `folder`.
    There they are read again if the weights (`base`), their types, the examples and `size` are the same.
    """
    with starting(model), evaluating(model):
        key = _key(model, groups, size, base)
        path = None if folder is None else folder / NAME
        if path is not None and (found := _read(path, key)) is not None:
            return found
        total = sum(map(len, groups))
        made: list[np.ndarray] = []
        for group in groups:
            part = yield from _computed(model, group, size, sum(map(len, made)), total)
            made.append(part)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"key": key, **{f"part{number}": each for number, each in enumerate(made)}}
        with replacing(path) as file:
            np.savez(file, **arrays)
    return made


def _computed(
    model: LanguageModel, examples: Sequence[Example], size: int, before: int, total: int
) -> Generator[Advanced, None, np.ndarray]:
    found = np.zeros(len(examples), dtype=np.float32)
    order = sorted(range(len(examples)), key=lambda at: len(examples[at]))
    for start in range(0, len(order), size):
        yield Advanced("preparing", before + start, total)
        places = order[start : start + size]
        found[places] = np.array(log_probabilities(model, collate([examples[at] for at in places]))[0])
    return found


def _key(model: LanguageModel, groups: Sequence[Sequence[Example]], size: int, base: str) -> str:
    weights: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    types = sorted((name, str(weight.dtype)) for name, weight in weights)
    digest = hashlib.sha256(json.dumps(["sums", base, types, size, list(map(len, groups))]).encode())
    for group in groups:
        for example in group:
            digest.update(example.fingerprint())
    return digest.hexdigest()


def _read(path: Path, key: str) -> list[np.ndarray] | None:
    """The stored log-probabilities; None for those of something else, or a damaged file."""
    try:
        # Read whole first: an archive that is not one may be an array, which has no names.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            return [found[f"part{number}"] for number in range(len(found.files) - 1)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError):
        return None
