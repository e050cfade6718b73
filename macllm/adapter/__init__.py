"""LoRA adapters on disk, in mlx-lm's format or PEFT's.

Tensors have the checkpoint's names; the key map of its family translates them both ways.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import CheckpointError, UsageError
from macllm.nn import lora
from macllm.nn.info import ModelInfo

from . import labels, mlx_lm, peft
from .attached import Held, activate, arrays, attached, checked, detach, exchange, identity
from .names import (
    Change,
    Names,
    check_tables,
    is_tied,
    refuse_shared_table,
    refuse_unknown_ties,
    to_ours,
    to_theirs,
    without_tied_heads,
)
from .notices import (
    BASE,
    tell_of_another_base,
    tell_of_another_tokenizer,
    tell_of_layers_left_out,
    tell_of_unknown_fields,
)
from .parameters import is_parameter

__all__ = [
    "BASE",
    "Form",
    "activate",
    "attach",
    "attach_blend",
    "attached",
    "detach",
    "identity",
    "read_config",
    "save",
]

# PEFT's, by kind; without one, it adds no methods to the model
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}

Form = Literal["mlx", "peft"]
"""Format on disk: mlx-lm's or PEFT's."""


def save(model: nn.Module, folder: Path, about: Mapping[str, Any] | None = None, form: Form = "mlx") -> None:
    """Write the adapter of a loaded `model` to `folder`, each file atomically.

    `about` has further fields for mlx-lm's adapter_config.json. Raises UsageError for a model without an adapter,
    CheckpointError for one that the format cannot hold.
    """
    layers = lora.adapters(model)
    if not layers:
        raise UsageError("the model has no adapter to save")
    updates = {name: layer.update_weights for name, layer in layers.items()}
    whole = {name: lora.whole_weights(module) for name, module in lora.saved(model).items()}
    names = Names.of(model, "modules" if form == "peft" else "mlx")
    theirs = to_theirs(model, {**updates, **whole}, names)
    rate = next(iter(layers.values())).rate
    if form == "peft":
        if not names.keymaps:
            peft.refuse_names(theirs, cast(ModelInfo, model.info).config)
        refuse_shared_table(model, {**updates, **whole})
        info = cast(ModelInfo, model.info)
        embeddings = [ours for ours, layer in layers.items() if isinstance(layer, lora.LoRAEmbedding)]
        tables = [name for ours in embeddings for name in names.theirs(ours)]
        with_head = [ours for ours, each in {**updates, **whole}.items() if isinstance(each, lora.Whole) or each.head]
        tied = [name for ours in with_head if is_tied(model, ours) for name in names.theirs(ours)]
        refuse_unknown_ties(names, tied)
        fields = {
            "task_type": labels.peft_task(info) or _TASKS[info.kind],
            **peft.base_fields((about or {}).get("model")),
            "lora_dropout": rate,
            "fan_in_fan_out": any(names.is_transposed(name) and not is_parameter(name) for name in theirs),
        }
        peft.save(theirs, fields, folder, tables, tied)
    else:
        mlx_lm.save(theirs, rate, {**(about or {}), **labels.record(cast(ModelInfo, model.info))}, folder)


def attach(model: nn.Module, folder: Path, base: Path | None = None, name: str | None = None) -> None:
    """Attach the adapter in `folder` to a loaded `model`, in place, and make it the only active one.

    `name` is its name for `activate` and `detach`; the folder without one. Adapters attached before stay attached.

    If it records the fingerprint of its base, and `base`, the model's folder, has another one, that is logged: the
    same model in other bits is a sound base, another model is not. Without `base`, it is the folder that the model was
    loaded from.
    Raises ModelNotFoundError if `folder` has no adapter, CheckpointError for one that does not fit the model.
    """
    exchange(model, {name or str(folder): 1.0}, lambda _name, _held: _read(model, folder, base), sys.maxsize)


def _read(model: nn.Module, folder: Path, base: Path | None) -> Held:
    folder = folder.expanduser()
    config, version = read_config(folder), _version(folder)
    labels.prepare(model, folder, config)
    of_peft = peft.holds_adapter(folder)
    found = peft.read(folder, config) if of_peft else mlx_lm.read(folder, config)
    _refuse_damaged(folder, found)
    names = Names.of(model, "modules" if of_peft else "mlx")
    if of_peft:
        check_tables(model, peft.tables(folder, config), names)
        found = without_tied_heads(model, found, names)
    try:
        updates = to_ours(model, found, names)
        held = checked(model, {ours: _of_head(model, ours, update) for ours, update in updates.items()}, version)
    except CheckpointError as error:
        made_for = config.get("model")
        raise CheckpointError(
            f"the adapter in {folder} does not fit the model",
            cause=": ".join(filter(None, (error.message, error.cause))),
            remedy=error.remedy or (f"load its base, {made_for}" if isinstance(made_for, str) else "load its base"),
        ) from error
    if of_peft:
        tell_of_unknown_fields(folder, config, peft.FIELDS)
        tell_of_layers_left_out(folder, model, config, found, names)
    if (base := base or cast(ModelInfo, model.info).folder) is not None:
        tell_of_another_base(folder, config, base)
        tell_of_another_tokenizer(folder, base)
    return held


def _refuse_damaged(folder: Path, found: Mapping[str, Change]) -> None:
    for name, change in found.items():
        if not mx.array([mx.isfinite(array).all() for array in arrays({name: change})]).all():
            raise CheckpointError(
                f"the adapter in {folder} has weights that are not finite",
                cause=f"NaN or infinite values in {name}",
                remedy="train it again with a lower learning rate, or take an earlier snapshot",
            )


def _of_head(model: nn.Module, name: str, update: Change) -> Change:
    """The change; `head` is false only for an embedding that is the head's matrix too."""
    if isinstance(update, lora.Whole) or update.head or is_tied(model, name):
        return update
    return update._replace(head=True)


def attach_blend(
    model: nn.Module, blend: Mapping[str, float], base: Path | None = None, *, keep_bytes: int = 0
) -> None:
    """Attach adapters by folder and make their sum, each times its weight, active; none: the base.

    Others stay attached up to `keep_bytes`, those used last before others. One that is attached already is read again
    only if its files have changed. Raises as `attach` and `activate` do; the former adapters then stay active.
    """

    def find(name: str, held: Held | None) -> Held:
        folder = Path(name)
        version = _version(folder.expanduser())
        return held if held is not None and version and held.version == version else _read(model, folder, base)

    exchange(model, blend, find, keep_bytes)


def _version(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, inodes, sizes and times of an adapter's files; empty without any."""
    try:
        found = [(path.name, path.stat()) for path in sorted(folder.glob("adapter*"))]
    except OSError:
        return ()
    return tuple((name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in found)


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of either format, checked.

    Raises ModelNotFoundError if the folder has no adapter, CheckpointError for one in another format.
    """
    if (folder / peft.PICKLED).is_file() and not peft.holds_adapter(folder):
        raise CheckpointError(
            f"{folder} has an adapter of PEFT in a pickle file, which macllm does not read",
            remedy="load it with peft and save it again (save_pretrained)",
        )
    return peft.read_config(folder) if peft.holds_adapter(folder) else mlx_lm.read_config(folder)
