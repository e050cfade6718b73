"""Transforms over the module tree, in place: adapters put into it, taken out, and merged."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Required, TypedDict, Unpack, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macllm.errors import CheckpointError, UsageError

from .layers import EMBEDDINGS, Adaptable, LoRALinear, Precision, Update, adapted_layer, layer_type, matches, sizes
from .whole import Replaced, Whole, check_whole, replaced, save_targets, saved, whole_copy, without_base

LAYER = re.compile(r"(.*?\.)??(?:layers|blocks|h)\.(\d+)\.")
"""Outermost stack and number of the layer in a name; mlx-lm's classes may say `blocks` or `h`."""

# Routers keep their choice of experts, unless a pattern names them.
_ROUTERS = ("*.router", "*.router.*", "*.gate")
_READ_DIRECTLY = ".altup."  # layers of AltUp, whose weights mlx-lm's class takes out of them
_TOKEN_TABLES = ("tokens", "embed_tokens", "wte", "embeddings")


class Settings(TypedDict, total=False):
    """Settings of a new adapter, with PEFT's names; rank and alpha are required.

    The update is scaled by alpha / rank, or with `use_rslora` by alpha / sqrt(rank) (arXiv:2312.03732). `use_dora`
    trains the norms of the weights' rows too (arXiv:2402.09353).
    """

    rank: Required[int]
    alpha: Required[float]
    dropout: float
    use_rslora: bool
    use_dora: bool


def apply(
    model: nn.Module,
    *,
    keys: Sequence[str] = (),
    num_layers: int = -1,
    seed: int = 0,
    modules_to_save: Sequence[str] = (),
    **settings: Unpack[Settings],
) -> list[str]:
    """Freeze `model` and adapt the linear layers and experts of its blocks, in place.

    Returns their names. `keys` are patterns of names (`*.mixer.q_proj`; a bare `q_proj` matches the end of one);
    without any, all are adapted but the routers. A pattern may name the head or the token embedding too. `num_layers`
    limits them to the last blocks of each stack; -1 means all. `modules_to_save` are patterns of modules, in any layer,
    that are trained whole and not adapted. Outputs do not change at first. Raises UsageError for a pattern that matches
    nothing, and for DoRA on experts and embeddings.
    """
    whole = save_targets(model, modules_to_save)
    chosen = {name: layer for name, layer in targets(model, keys, num_layers).items() if name not in whole}
    if not chosen:
        raise UsageError("no layer to adapt", cause="modules_to_save has all of them", remedy="--full")
    kinds = {name: layer_type(linear, use_dora=settings.get("use_dora", False)) for name, linear in chosen.items()}
    rank, dropout = settings["rank"], settings.get("dropout", 0.0)
    scale = settings["alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    model.freeze()
    adapted_layers = {}
    for name, key in zip(chosen, mx.random.split(mx.random.key(seed), len(chosen)), strict=True):
        adapted_layers[name] = kinds[name].initial(chosen[name], rank, scale, dropout, key)
        adapted_layers[name].train(model.training)  # no dropout in a model that is evaluated
    _put(model, adapted_layers | {name: whole_copy(module) for name, module in whole.items()})
    return [*adapted_layers, *whole]


def targets(model: nn.Module, keys: Sequence[str] = (), num_layers: int = -1) -> dict[str, Adaptable]:
    """The layers that `apply` would adapt, by name, in order. Raises UsageError as it does."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Adaptable) and not name.endswith(".linear") and _is_adaptable(name, module)
    }
    blocks = [name for name in layers if LAYER.match(name)]
    for key in keys:
        if not any(matches(name, key) for name in layers):
            raise _unmatched(key, layers)
    if not blocks:
        raise UsageError("no linear layer to adapt", cause="the model's blocks have no linear layers")
    last = in_last_layers(blocks, num_layers)
    if not keys:
        chosen = [name for name in last if not any(fnmatchcase(name, pattern) for pattern in _ROUTERS)]
    else:
        others = [name for name in layers if name not in blocks]
        chosen = [name for name in (*last, *others) if any(matches(name, key) for key in keys)]
        if not chosen:
            raise UsageError(f"nothing in the last {num_layers} layers matches {', '.join(keys)}")
    return {name: layers[name] for name in sorted(chosen, key=lambda n: (_position(n), n))}


def in_last_layers(names: Iterable[str], count: int) -> list[str]:
    """The names within the last `count` layers of each stack; -1: within any layer."""
    positions = {name: _position(name) for name in names if LAYER.match(name)}
    depth: dict[str, int] = {}
    for stack, layer in positions.values():
        depth[stack] = max(depth.get(stack, 0), layer + 1)
    return [name for name, (stack, layer) in positions.items() if count < 0 or layer >= depth[stack] - count]


def _is_adaptable(name: str, module: Adaptable) -> bool:
    """False for embeddings of other things than tokens, and for layers whose weights are read directly."""
    if isinstance(module, EMBEDDINGS):
        return name.rsplit(".", 1)[-1] in _TOKEN_TABLES
    return _READ_DIRECTLY not in name


def _unmatched(key: str, layers: Mapping[str, object]) -> UsageError:
    """The error for a pattern without a layer, with the most similar names."""
    ends = sorted({LAYER.sub("*.", name) for name in layers})
    short = {end.rsplit(".", 1)[-1]: end for end in ends} | {end: end for end in ends}
    near = dict.fromkeys(short[name] for name in difflib.get_close_matches(key, short, n=6, cutoff=0.4))
    return UsageError(
        f"no linear layer to adapt for the pattern {key!r}",
        cause="no linear layer, stack of experts or token embedding has such a name; modules_to_save has others",
        remedy=f"patterns such as {', '.join([*near, *(end for end in ends if end not in near)][:12])}",
    )


def _position(name: str) -> tuple[str, int]:
    """The stack and the layer number in a parameter's name; outside of the layers, behind all of them."""
    match = LAYER.match(name)
    return ("~", 0) if match is None else (match[1] or "", int(match[2]))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The LoRA layers of `model`, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def applied(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that an adapter changes in `model`, with those that `Disabled` keeps out of it."""
    return changed(model) | _aside(model).layers


_ASIDE = "disabled_adapters"


@dataclass
class _Aside:
    """The changed modules that contexts keep out of a model, and the number of those contexts."""

    contexts: int = 0
    layers: dict[str, nn.Module] = field(default_factory=dict)


def _aside(model: nn.Module) -> _Aside:
    return vars(model).setdefault(_ASIDE, _Aside())


class Disabled:
    """A context, to be entered as often as wanted, in which a model is without its adapter.

    Contexts of one model may be nested and interleaved in any way: the layers come back when the last ends. Adapters
    that are exchanged meanwhile show then, too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        aside = _aside(self._model)
        if not aside.contexts:
            aside.layers = changed(self._model)
            replace(self._model, {name: base_of(layer) for name, layer in aside.layers.items()})
        aside.contexts += 1

    def __exit__(self, *error: object) -> None:
        aside = _aside(self._model)
        aside.contexts -= 1
        if not aside.contexts:
            for layer in aside.layers.values():
                layer.train(base_of(layer).training)
            replace(self._model, aside.layers)
            aside.layers = {}


def changed(model: nn.Module) -> dict[str, nn.Module]:
    """The LoRA layers of `model` and the modules that are trained whole, by name."""
    return {**adapters(model), **saved(model)}


def base_of(module: nn.Module) -> nn.Module:
    """The module of the base in whose place a changed one stands."""
    return module.linear if isinstance(module, LoRALinear) else cast(Replaced, replaced(module)).base


def disabled(model: nn.Module) -> Disabled:
    """A context in which `model` is its base, bit for bit: the reference policy of an adapted model.

    Adapted layers and their trained weights come back at its end, also after an error. The base stays frozen, so
    gradients within it are those of the unadapted frozen model.
    """
    return Disabled(model)


def _put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put changed modules in their places, within `Disabled` when its last context ends."""
    aside = _aside(model)
    if aside.contexts:
        aside.layers |= layers
    else:
        replace(model, layers)


def attach(model: nn.Module, changes: Mapping[str, Update | Whole]) -> None:
    """Freeze `model`, and change the named modules: by low-rank updates, or whole, in place.

    Former adapters are removed. Raises CheckpointError for a name that is not a linear layer of the model, or a shape
    that does not fit it, or DoRA's magnitudes of another layer; the model is then as before.
    """
    with Disabled(model):
        modules = check(model, changes)
        made = {
            name: whole_copy(modules[name], each) if isinstance(each, Whole) else adapted_layer(modules[name], each)
            for name, each in changes.items()
        }
        model.freeze()
        _aside(model).layers = made


def check(model: nn.Module, changes: Mapping[str, Update | Whole]) -> dict[str, nn.Module]:
    """The modules that an adapter would change. Raises CheckpointError as `attach` does."""
    whole = check_whole(model, {name: change for name, change in changes.items() if isinstance(change, Whole)})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Adaptable)}
    updates = {name: change for name, change in changes.items() if isinstance(change, Update)}
    for name, update in updates.items():
        if name not in layers:
            raise CheckpointError(
                f"the adapter changes {name}, which is not a linear layer of this model",
            )
        _check_shapes(name, layers[name], update.a, update.b)
        _check_magnitude(name, layers[name], update.magnitude)
    return {name: layers[name] for name in updates} | whole


def _check_magnitude(name: str, linear: Any, magnitude: mx.array | None) -> None:
    if magnitude is not None and layer_type(linear) is not LoRALinear:
        raise CheckpointError(
            f"the adapter has DoRA magnitudes of {name}, which is not a linear layer",
            remedy="merge it with the tool that made it, and load the merged model",
        )
    if magnitude is not None and magnitude.shape != (sizes(linear)[1],):
        raise CheckpointError(
            f"the adapter's magnitudes of {name} have shape {magnitude.shape}",
            cause=f"the model's layer has {sizes(linear)[1]} rows",
        )


def _check_shapes(name: str, linear: Any, lora_a: mx.array, lora_b: mx.array) -> None:
    inputs, outputs = sizes(linear)
    if lora_a.ndim != linear.weight.ndim or lora_b.ndim != lora_a.ndim:
        raise CheckpointError(f"the adapter's factors of {name} do not match: A is {lora_a.shape}, B is {lora_b.shape}")
    if lora_a.ndim == 3:
        count = linear.weight.shape[0]
        if lora_a.shape[0] != count or lora_b.shape[0] != count:
            raise CheckpointError(f"the adapter's {name} has {lora_a.shape[0]} experts, the model's {count}")
        lora_a, lora_b = lora_a[0].T, lora_b[0].T
    if lora_a.shape[1] != lora_b.shape[0]:
        raise CheckpointError(f"the adapter's factors of {name} do not match: A is {lora_a.shape}, B is {lora_b.shape}")
    wanted = (outputs, inputs) if isinstance(linear, EMBEDDINGS) else (inputs, outputs)
    if (lora_a.shape[0], lora_b.shape[1]) != wanted:
        raise CheckpointError(
            f"the adapter's {name} maps {lora_a.shape[0]} to {lora_b.shape[1]}, the model's {wanted[0]} to {wanted[1]}",
        )


def remove(model: nn.Module) -> None:
    """Remove every change of an adapter, in place: the model as before `apply`."""
    with Disabled(model):
        _aside(model).layers = {}


def fuse(model: nn.Module, dequantize: bool = False, *, precision: Precision = "stored") -> None:
    """Merge every LoRA update into its base layer, and keep the modules that are stored whole, in place.

    `dequantize` is short for the precision "unquantized" of the adapted layers. What quantizing again costs,
    `macllm.adapter.merge` measures.
    """
    chosen: Precision = "unquantized" if dequantize else precision
    merged = {name: layer.fused(chosen) for name, layer in adapters(model).items()}
    replace(model, merged | {name: without_base(module, chosen) for name, module in saved(model).items()})


def replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put `modules` in the places that their names say, in place."""
    if modules:
        model.update_modules(tree_unflatten(list(modules.items())))
