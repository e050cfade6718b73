"""A new head that classifies, in the place of a model's other heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx

from .info import describe
from .labels import LabelHead
from .linear import Linear
from .models import DecoderLM, EncoderLM
from .spec import LabelSpec


def put_label_head(model: DecoderLM | EncoderLM, spec: LabelSpec, *, std: float = 0.02, seed: int = 0) -> None:
    """Put a new classifying head, in float32, in the place of the model's head or heads, in place.

    Matrices are normal with deviation `std`, biases 0, as for a pooler that the head reads and the model lacks.
    """
    dim = model.spec.embedding.dim
    for name in ("head", "labels"):
        model.pop(name, None)
    keys = mx.random.split(mx.random.key(seed), 3)
    model.labels = LabelHead(dim, spec)
    made = [model.labels.proj, *([model.labels.dense] if spec.dense else [])]
    changes: dict[str, bool] = {}
    if isinstance(model, EncoderLM):
        changes["pooler"] = spec.reads == "pooled"
        if not changes["pooler"]:
            model.pop("pooler", None)
        elif "pooler" not in model:
            model.pooler = Linear(dim, dim)
            made.append(model.pooler)
    for layer, key in zip(made, keys, strict=False):
        layer.weight = mx.random.normal(layer.weight.shape, scale=std, key=key)
        if "bias" in layer:
            layer.bias = mx.zeros_like(layer.bias)
    made_spec: Any = replace(model.spec, head=None, labels=spec, **changes)
    facts = describe(made_spec)
    model.spec = made_spec
    model.info = replace(model.info, kind=facts.kind, labels=facts.labels, packs=facts.packs)
    model.train(model.training)
