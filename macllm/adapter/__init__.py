"""LoRA adapters on disk, in mlx-lm's format or PEFT's.

Tensors have the checkpoint's names; the key map of its family translates them both ways. Where one tensor of the
checkpoint holds several linear layers of ours (fused queries, keys and values), their factors become one pair of
higher rank: the As side by side, the Bs block-diagonal.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx
import mlx.nn as nn

from macllm import families, files
from macllm.errors import CheckpointError, MacllmError, ModelNotFoundError, UsageError
from macllm.families.config import Config
from macllm.hub.files import refuse_pointers
from macllm.nn import lora
from macllm.nn.info import ModelInfo
from macllm.weights.fingerprint import fingerprint
from macllm.weights.keymap import Rule, Split, our_modules, their_modules
from macllm.weights.safetensors import load_file, save_file

from . import peft

log = logging.getLogger(__name__)

BASE = "base_fingerprint"
"""Field of adapter_config.json: the fingerprint of the checkpoint that the adapter was trained on."""
_WEIGHTS, _CONFIG = "adapters.safetensors", "adapter_config.json"
_LEAVES = ("lora_a", "lora_b")

Factors = tuple[mx.array, mx.array]
Form = Literal["mlx", "peft"]
"""Format on disk: mlx-lm's or PEFT's."""


def save(model: nn.Module, folder: Path, about: Mapping[str, Any] | None = None, form: Form = "mlx") -> None:
    """Write the adapter of a loaded `model` to `folder`, each file atomically.

    `about` has further fields for mlx-lm's adapter_config.json. Raises UsageError for a model without an adapter,
    CheckpointError for one that PEFT's format cannot hold.
    """
    layers = lora.adapters(model)
    if not layers:
        raise UsageError("the model has no adapter to save")
    first = next(iter(layers.values()))
    # Both formats have one scale; a layer's own goes into its B.
    factors = {
        name: (layer.lora_a, layer.lora_b if layer.scale == first.scale else layer.lora_b * (layer.scale / first.scale))
        for name, layer in layers.items()
    }
    theirs = _to_theirs(model, factors, _names(model, "hf" if form == "peft" else "mlx"))
    rank = max(_rank(pair) for pair in theirs.values())
    theirs = {name: _widened(pair, rank) for name, pair in theirs.items()}
    if form == "peft":
        base = (about or {}).get("model")
        peft.save(theirs, first.scale, first.rate, base, folder)
        return
    tensors = {f"{name}.{leaf}": t for name, pair in theirs.items() for leaf, t in zip(_LEAVES, pair, strict=True)}
    config = {
        **(about or {}),
        "fine_tune_type": "lora",
        "num_layers": -1,  # all: a layer without tensors keeps B = 0, the identity
        "lora_parameters": {
            "rank": rank,
            "scale": first.scale,
            "dropout": first.rate,
            "keys": sorted({_within_layer(name) for name in theirs}),
        },
    }
    save_file(tensors, folder / _WEIGHTS, {"format": "mlx"})
    files.write_json(folder / _CONFIG, config)


def _widened(factors: Factors, rank: int) -> Factors:
    """A pair of this rank: columns of zeros change nothing."""
    (a, b), more = factors, (0, rank - _rank(factors))
    if a.ndim == 2:
        return mx.pad(a, [(0, 0), more]), mx.pad(b, [more, (0, 0)])
    return mx.pad(a, [(0, 0), more, (0, 0)]), mx.pad(b, [(0, 0), (0, 0), more])


def attach(model: nn.Module, folder: Path, base: Path | None = None) -> None:
    """Attach the adapter in `folder` to the linear layers of a loaded `model`, in place.

    If it records the fingerprint of its base, and `base`, the model's folder, has another one, that is logged: the
    same model in other bits is a sound base, another model is not.
    Raises ModelNotFoundError if `folder` has no adapter, CheckpointError for one that does not fit the model.
    """
    config = read_config(folder)
    found: dict[str, tuple[Factors, float]]
    if peft.holds_adapter(folder):
        names, found = _names(model, "hf"), peft.read(folder, config)
    else:
        scale = config["lora_parameters"]["scale"]
        names, found = _names(model), {name: (pair, scale) for name, pair in _read(folder).items()}
    factors: dict[str, Factors] = {}
    scales: dict[str, float] = {}
    for name, (pair, scale) in found.items():
        ours = _to_ours(model, name, pair, names)
        factors |= ours
        scales |= dict.fromkeys(ours, scale)
    lora.attach(model, factors, scales)
    model.eval()
    if base is not None:
        _tell_of_another_base(folder, config.get(BASE), base)


def _read(folder: Path) -> dict[str, Factors]:
    """A and B of each module of mlx-lm. Raises CheckpointError for other tensors, or none."""
    theirs: dict[str, dict[str, mx.array]] = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        module, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES:
            raise CheckpointError(f"{folder / _WEIGHTS}: {name} is not part of a LoRA adapter")
        theirs.setdefault(module, {})[leaf] = tensor
    for name, pair in theirs.items():
        if len(pair) < 2:
            raise CheckpointError(f"{folder / _WEIGHTS}: {name} has one factor only")
    if not theirs:
        raise CheckpointError(f"{folder / _WEIGHTS} has no tensors, so the adapter changes nothing")
    return {name: (pair["lora_a"], pair["lora_b"]) for name, pair in theirs.items()}


def _tell_of_another_base(folder: Path, recorded: object, base: Path) -> None:
    if not isinstance(recorded, str):  # mlx-lm and PEFT record none
        return
    try:
        found = fingerprint(base)
    except (OSError, ValueError, MacllmError):  # as of mlx-lm's own classes, which read other layouts
        return
    if found != recorded:
        log.warning(
            "%s: the weights in %s are not those that the adapter was trained on; right only for the same model in "
            "other bits",
            folder,
            base,
        )


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of either format, checked.

    Raises ModelNotFoundError if the folder has no adapter, CheckpointError for one in another format.
    """
    path = folder / _CONFIG
    if peft.holds_adapter(folder):
        return peft.read_config(folder)
    if not path.is_file() or not (folder / _WEIGHTS).is_file():
        raise ModelNotFoundError(
            f"no adapter in {folder}",
            cause=f"an adapter is {_WEIGHTS} and {_CONFIG}",
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
    if config.get("fine_tune_type", "lora") != "lora":
        raise CheckpointError(f"{path} is not a LoRA adapter", cause=f"fine_tune_type is {config['fine_tune_type']!r}")
    return config


@dataclass(frozen=True)
class _Names:
    """Translation between our module names and those of mlx-lm or transformers.

    Both give lists: one module of theirs may be several of ours.
    """

    theirs: Callable[[str], list[str]]
    ours: Callable[[str], list[str]]


def _names(model: nn.Module, layout: families.Layout = "mlx") -> _Names:
    config = cast(ModelInfo, model.info).config
    if not families.is_known(dict(config)):  # mlx-lm's own class, one level down
        return _Names(lambda ours: [ours.removeprefix("model.")], lambda theirs: [f"model.{theirs}"])
    keymap = families.keys(Config(config, ()), layout)
    return _Names(
        lambda ours: [name for name, rule in their_modules(ours, keymap) if isinstance(rule, Rule | Split)],
        lambda theirs: our_modules(theirs, keymap),
    )


def _to_theirs(model: nn.Module, factors: dict[str, Factors], names: _Names) -> dict[str, Factors]:
    joined: dict[str, Factors] = {}
    for ours in factors:
        found = names.theirs(ours)
        if not found:
            raise CheckpointError(f"{ours} has no name in the checkpoint's layout, so an adapter cannot store it")
        for name in found:
            if name not in joined:
                parts = names.ours(name)
                joined[name] = _join([factors.get(part) for part in parts], [_shape(model, part) for part in parts])
    return joined


def _join(parts: list[Factors | None], shapes: list[tuple[int, int]]) -> Factors:
    """One pair of factors for fused linear layers; zeros for a layer without a pair."""
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    present = [p for p in parts if p is not None]
    lora_a = mx.concatenate([a for a, _ in present], axis=1)
    rows, before = [], 0
    for part, (_, outputs) in zip(parts, shapes, strict=True):
        width = part[1].shape[0] if part is not None else 0
        above, below = before, lora_a.shape[1] - before - width
        block = part[1] if part is not None else mx.zeros((0, outputs))
        rows.append(mx.pad(block, [(above, below), (0, 0)]))
        before += width
    return lora_a, mx.concatenate(rows, axis=1)


def _to_ours(model: nn.Module, theirs: str, factors: Factors, names: _Names) -> dict[str, Factors]:
    parts = names.ours(theirs)
    if not parts:
        raise CheckpointError(f"the adapter changes {theirs}, which this model does not have")
    if len(parts) == 1:
        return {parts[0]: factors}
    lora_a, lora_b = factors
    outputs = [_shape(model, part)[1] for part in parts]
    if lora_b.shape[1] != sum(outputs):
        raise CheckpointError(f"the adapter's {theirs} has {lora_b.shape[1]} outputs, the model's {sum(outputs)}")
    ends = [sum(outputs[: n + 1]) for n in range(len(outputs) - 1)]
    return {part: (lora_a, b) for part, b in zip(parts, mx.split(lora_b, ends, axis=1), strict=True)}


def _shape(model: nn.Module, name: str) -> tuple[int, int]:
    modules = dict(model.named_modules())
    module = modules.get(name)
    if isinstance(module, lora.LoRALinear):
        module = module.linear
    if not isinstance(module, lora.Adaptable):
        raise CheckpointError(f"the adapter changes {name}, which is not a linear layer of this model")
    return lora.sizes(module)


def _rank(factors: Factors) -> int:
    """The rank of a pair: A is (D, r), or (E, r, D) of experts."""
    return factors[0].shape[1]


def _within_layer(theirs: str) -> str:
    """`model.layers.3.self_attn.q_proj` -> `self_attn.q_proj`: the name within a layer, as mlx-lm expects."""
    words = theirs.split(".")
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[0] + 1 :]) if numbers else theirs
