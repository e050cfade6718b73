"""Several adapters of one loaded model, attached by name; one of them or a blend is active."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn

from macllm.errors import UsageError
from macllm.nn import lora
from macllm.nn.lora import Update, Whole

_ATTRIBUTE = "attached_adapters"
_numbers = itertools.count(1)


@dataclass(frozen=True, eq=False)
class Held:
    """The changes of an adapter by module. `version` is that of its files; `number` is no other adapter's."""

    updates: dict[str, Update | Whole]
    version: Hashable = None
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, magnitudes and modules stored whole."""
        return sum(array.nbytes for array in arrays(self.updates))


@dataclass
class _Attached:
    """Adapters by name, that used last at the end, and the weights of the active ones."""

    adapters: dict[str, Held] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def attached(model: nn.Module) -> dict[str, float]:
    """The names of the attached adapters with their weights; 0 for one that is not active."""
    held = _of(model)
    return {name: held.weights.get(name, 0.0) for name in held.adapters}


def identity(model: object) -> Hashable:
    """A value that two states of a model share only if their outputs are equal; () for the base alone.

    A model of the engines' protocol that is no module holds no adapters.
    """
    if not isinstance(model, nn.Module):
        return ()
    held = _of(model)
    if not held.weights and lora.changed(model):
        return "in training"
    return tuple((held.adapters[name].number, weight) for name, weight in held.weights.items())


def checked(model: nn.Module, updates: Mapping[str, Update | Whole], version: Hashable = None) -> Held:
    """The changes, read into memory. Raises CheckpointError if they do not fit the model."""
    _refuse_training(model)
    with lora.disabled(model):
        lora.check(model, updates)
    held = Held(dict(updates), version)
    mx.eval(arrays(held.updates))
    return held


def activate(model: nn.Module, adapters: str | Mapping[str, float] | None) -> None:
    """Make one attached adapter active, or several, each times its weight; None: the base alone.

    The base is not loaded again, and nothing of the former adapters stays; within `macllm.nn.lora.disabled` it shows
    once that ends. Raises UsageError for a name that is not attached, for DoRA in a blend, and for a module that is
    stored whole in one; the former adapters then stay active.
    """
    held = _of(model)
    weights = {} if adapters is None else {adapters: 1.0} if isinstance(adapters, str) else dict(adapters)
    if unknown := [name for name in weights if name not in held.adapters]:
        known = ", ".join(held.adapters) or "none"
        raise UsageError(f"no adapter {unknown[0]} is attached", cause=f"attached: {known}", remedy="attach it first")
    _refuse_training(model)
    weights = {name: float(weight) for name, weight in weights.items() if weight}
    updates = _blended([(held.adapters[name].updates, weight) for name, weight in weights.items()])
    mx.eval(arrays(updates))  # whatever can fail does so before the model changes
    lora.attach(model, updates)
    held.weights = weights
    held.adapters |= {name: held.adapters.pop(name) for name in weights}  # at the end
    model.eval()


def _refuse_training(model: nn.Module) -> None:
    if lora.applied(model) and not _of(model).weights:
        raise UsageError(
            "the model has an adapter in training",
            cause="macllm.nn.lora.apply made it, so no name holds it",
            remedy="macllm.adapter.save, then attach it to a model that is loaded anew",
        )


def exchange(
    model: nn.Module, blend: Mapping[str, float], find: Callable[[str, Held | None], Held], keep_bytes: int = 0
) -> None:
    """Make adapters active, each times its weight, that `find` returns by name, given the attached one.

    Adapters that are no longer active stay attached up to `keep_bytes`, those used last before others. After an error
    the former ones are active.
    """
    held = _of(model)
    before = dict(held.adapters)
    found = {name: find(name, before.get(name)) for name in blend}
    try:
        held.adapters |= found
        activate(model, blend)
    except BaseException:
        held.adapters = before
        raise
    for name in reversed([name for name in held.adapters if name not in held.weights]):
        keep_bytes -= held.adapters[name].nbytes
        if keep_bytes < 0:
            del held.adapters[name]


def detach(model: nn.Module, name: str) -> None:
    """Forget an attached adapter; if it was active, the others stay so.

    Raises UsageError for an unknown name.
    """
    held = _of(model)
    if name not in held.adapters:
        raise UsageError(f"no adapter {name} is attached", cause=f"attached: {', '.join(held.adapters) or 'none'}")
    if name in held.weights:
        activate(model, {other: weight for other, weight in held.weights.items() if other != name})
    del held.adapters[name]


def arrays(changes: Mapping[str, Update | Whole]) -> list[mx.array]:
    """The factors, magnitudes and weights of changes."""
    found: list[mx.array | None] = []
    for change in changes.values():
        whole = isinstance(change, Whole)
        found += change.tensors.values() if whole else (change.a, change.b, change.magnitude)
    return [array for array in found if array is not None]


def _of(model: nn.Module) -> _Attached:
    return vars(model).setdefault(_ATTRIBUTE, _Attached())


def _blended(adapters: list[tuple[dict[str, Update | Whole], float]]) -> dict[str, Update | Whole]:
    """The sum of the updates, each times its weight: As side by side, scaled Bs below each other.

    A module that one adapter stores whole has its weights, if no other changes it.
    """
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    gathered: dict[str, list[Update]] = {}
    whole: dict[str, Whole] = {}
    for updates, weight in adapters:
        for layer, update in updates.items():
            if layer in whole or (layer in gathered and isinstance(update, Whole)):
                raise UsageError(
                    f"two adapters change {layer}, and one of them stores it whole",
                    cause="a module has one set of weights",
                    remedy="one of the two",
                )
            if isinstance(update, Whole):
                if weight != 1:
                    raise UsageError(
                        f"an adapter that stores {layer} whole has no weight but 1", cause=f"its weight is {weight:g}"
                    )
                whole[layer] = update
                continue
            if update.magnitude is not None:
                raise UsageError(
                    "a DoRA adapter cannot be blended",
                    cause="its magnitudes replace the norms of the weights, so a share of it is not defined",
                    remedy="weight 1 and no other adapter, or macllm fuse it and take the other ones on the result",
                )
            gathered.setdefault(layer, []).append(update._replace(scale=update.scale * weight))
    return whole | {layer: parts[0] if len(parts) == 1 else _sum(parts) for layer, parts in gathered.items()}


def _sum(parts: list[Update]) -> Update:
    if len({part.head for part in parts}) > 1:
        raise UsageError("adapters of an embedding with and without its tied head cannot be blended")
    stack = parts[0].a.ndim == 3  # of experts: A (E, r, D), B (E, F, r)
    lora_a = mx.concatenate([part.a for part in parts], axis=1)
    lora_b = mx.concatenate([part.scaled_b(1.0) for part in parts], axis=2 if stack else 0)
    return Update(lora_a, lora_b, head=parts[0].head)
