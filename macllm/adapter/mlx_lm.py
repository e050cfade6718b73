"""Adapters in mlx-lm's format: `adapters.safetensors` and `adapter_config.json`.

Tensors are `<module of mlx-lm>.lora_a` (D, r) and `.lora_b` (r, F), of experts (E, r, D) and (E, F, r), and DoRA's
magnitudes `.m` (F,). One rank and one scale hold for all. Modules that are stored whole have the names of the base's
tensors; mlx-lm refuses an adapter with such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from macllm import files
from macllm.errors import CheckpointError, ModelNotFoundError
from macllm.hub.files import refuse_pointers
from macllm.nn.lora import Update, Whole
from macllm.weights.safetensors import load_file, save_file

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
SAVED = "modules_to_save"
"""Field of the config: the modules that are stored whole, as `<module>.weight` and the like."""
_LEAVES = ("lora_a", "lora_b", "m")
_TYPES = ("lora", "dora")


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, checked.

    Raises ModelNotFoundError if the folder has no adapter, CheckpointError for one in another format.
    """
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ModelNotFoundError(
            f"no adapter in {folder}",
            cause=f"an adapter is {WEIGHTS} and {CONFIG}",
            remedy="macllm finetune --lora --model M --data train.jsonl",
        )
    refuse_pointers(folder)
    try:
        config = files.read_json(path)
        scale = config["lora_parameters"]["scale"]
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
            raise ValueError("lora_parameters.scale is not a finite number")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a LoRA config", cause=str(error)) from error
    if config.get("fine_tune_type", "lora") not in _TYPES:
        raise CheckpointError(
            f"{path} is not a LoRA or DoRA adapter",
            cause=f"fine_tune_type is {config['fine_tune_type']!r}",
            remedy="merge it with mlx_lm.fuse, and load the merged model",
        )
    return config


def read(folder: Path, config: Mapping[str, Any]) -> dict[str, Update | Whole]:
    """The change of each module of mlx-lm. Raises CheckpointError for other tensors, or none."""
    theirs: dict[str, dict[str, mx.array]] = {}
    whole = {name: Whole({}) for name in config.get(SAVED) or ()}
    leaves = _LEAVES[: 3 if config.get("fine_tune_type") == "dora" else 2]
    for name, tensor in load_file(folder / WEIGHTS).items():
        module, _, leaf = name.rpartition(".")
        if module in whole:
            whole[module].tensors[leaf] = tensor
            continue
        if leaf not in leaves:
            raise CheckpointError(f"{folder / WEIGHTS}: {name} is not part of a LoRA adapter")
        theirs.setdefault(module, {})[leaf] = tensor
    for name, tensors in theirs.items():
        if absent := [leaf for leaf in leaves if leaf not in tensors]:
            one = "has one factor only" if absent[0] != "m" else "has no magnitudes"
            raise CheckpointError(f"{folder / WEIGHTS}: {name} {one}")
    if not theirs:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensors, so the adapter changes nothing")
    scale = config["lora_parameters"]["scale"]
    updates = {name: Update(t["lora_a"], t["lora_b"], scale, t.get("m")) for name, t in theirs.items()}
    _check_ranks(folder, updates, config["lora_parameters"].get("rank"))
    return {**updates, **whole}


def _check_ranks(folder: Path, updates: Mapping[str, Update], rank: object) -> None:
    """Raise CheckpointError for another rank than the config's, as mlx-lm does: the scale is its own."""
    for name, update in updates.items():
        if update.a.ndim < 2 or not isinstance(rank, int):
            continue
        ranks = {_rank(update), update.b.shape[-1 if update.b.ndim == 3 else 0]}  # of two, the shapes are at fault
        if len(ranks) == 1 and ranks != {rank}:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has rank {_rank(update)}, not {rank}",
                cause=f"{CONFIG} gives that rank, and the scale that belongs to it",
                remedy="the config and the tensors of one adapter",
            )


def save(theirs: Mapping[str, Update | Whole], dropout: float, about: Mapping[str, Any], folder: Path) -> None:
    """Write changes by module of mlx-lm, each file atomically; `about` has further fields for the config."""
    whole = {name: change for name, change in theirs.items() if isinstance(change, Whole)}
    theirs = {name: change for name, change in theirs.items() if isinstance(change, Update)}
    if alone := [name for name, update in theirs.items() if not update.head]:
        raise CheckpointError(
            f"mlx-lm's format cannot hold an adapter of {alone[0]} that leaves its tied head as it is",
            remedy="keep the adapter in PEFT's format",
        )
    rank = max(_rank(update) for update in theirs.values())
    scale = next((update.scale for update in theirs.values() if update.scale), 0.0)
    tensors = {f"{name}.{leaf}": array for name, each in whole.items() for leaf, array in each.tensors.items()}
    for name, update in theirs.items():
        a, b, _, magnitude, _ = _widened(update, rank, scale)
        tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b} | ({} if magnitude is None else {f"{name}.m": magnitude})
    config = {
        **about,
        "fine_tune_type": "lora" if next(iter(theirs.values())).magnitude is None else "dora",
        "num_layers": -1,  # all: a layer without tensors keeps B = 0, the identity
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": dropout,
            "keys": sorted({within_layer(name) for name in theirs}),
        },
    } | ({SAVED: sorted(whole)} if whole else {})
    save_file(tensors, folder / WEIGHTS, {"format": "mlx"})
    files.write_json(folder / CONFIG, config)


def _rank(update: Update) -> int:
    """The rank of an update: A is (D, r), or (E, r, D) of experts."""
    return update.a.shape[1]


def _widened(update: Update, rank: int, scale: float) -> Update:
    """The update in this rank, to which columns of zeros add nothing, and with this scale."""
    a, b, magnitude = update.a, update.scaled_b(scale), update.magnitude
    more = (0, rank - _rank(update))
    if a.ndim == 2:
        return Update(mx.pad(a, [(0, 0), more]), mx.pad(b, [more, (0, 0)]), scale, magnitude)
    return Update(mx.pad(a, [(0, 0), more, (0, 0)]), mx.pad(b, [(0, 0), (0, 0), more]), scale, magnitude)


def within_layer(theirs: str) -> str:
    """`model.layers.3.self_attn.q_proj` -> `self_attn.q_proj`: the name within a layer, as mlx-lm expects."""
    words = theirs.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[0] + 1 :]) if numbers else theirs
