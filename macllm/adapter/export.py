"""Description of an adapter's files, and their translation into the other format."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from macllm.errors import UsageError
from macllm.nn import lora

from . import Form, attach, mlx_lm, peft, read_config, save
from .names import divided


@dataclass(frozen=True)
class AdapterSummary:
    """Facts of an adapter that its files tell.

    `targets` and `whole` are numbers of adapted modules and of those stored whole, by name within a layer; `ranks` and
    `scales` each value that occurs.
    """

    form: Form
    kind: str
    base: str | None
    ranks: list[int]
    scales: list[float]
    dropout: float
    targets: dict[str, int]
    whole: dict[str, int]
    parameters: int
    size_bytes: int


def describe(folder: Path) -> AdapterSummary:
    """Facts of the adapter in `folder`; no model is loaded. Raises as `macllm.adapter.attach`."""
    config = read_config(folder)
    of_peft = peft.holds_adapter(folder)
    updates, whole = divided(peft.read(folder, config) if of_peft else mlx_lm.read(folder, config))
    arrays = [array for update in updates.values() for array in (update.a, update.b, update.magnitude)]
    arrays += [array for each in whole.values() for array in each.tensors.values()]
    base = config.get("model")
    return AdapterSummary(
        form="peft" if of_peft else "mlx",
        kind="DoRA" if any(update.magnitude is not None for update in updates.values()) else "LoRA",
        base=base if isinstance(base, str) else None,
        ranks=sorted({update.a.shape[1] for update in updates.values()}),
        scales=sorted({float(update.scale) for update in updates.values()}),
        dropout=_dropout(config),
        targets=dict(sorted(Counter(map(mlx_lm.within_layer, updates)).items())),
        whole=dict(sorted(Counter(map(mlx_lm.within_layer, whole)).items())),
        parameters=sum(array.size for array in arrays if array is not None),
        size_bytes=(folder / (peft.WEIGHTS if of_peft else mlx_lm.WEIGHTS)).stat().st_size,
    )


def export(model: nn.Module, folder: Path, output: Path, form: Form) -> None:
    """Write the adapter in `folder` to `output` in another format.

    `model` is its base, which it is attached to. Raises UsageError if `output` holds a model or an adapter,
    CheckpointError for what the format cannot hold.
    """
    # In a model's folder, transformers would take the adapter's config for the model's.
    if any((output / name).exists() for name in (mlx_lm.CONFIG, "config.json")) or [*output.glob("*.safetensors")]:
        raise UsageError(f"{output} already has a model or an adapter", remedy=f"--output {shlex.quote(f'{output}-2')}")
    config = read_config(folder)
    attach(model, folder)
    for layer in lora.adapters(model).values():
        layer.rate = _dropout(config)
    save(model, output, _about(config), form)


def _dropout(config: Mapping[str, Any]) -> float:
    value = config.get("lora_dropout", (config.get("lora_parameters") or {}).get("dropout"))
    return float(value) if isinstance(value, int | float) else 0.0


def _about(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say which base an adapter has and how it was trained."""
    return {name: config[name] for name in ("model", "base_fingerprint", "learning_rate") if config.get(name)}
