"""PEFT's `target_parameters`: updates of parameters, as of the stacked experts of transformers 5.

PEFT wraps a module once for each of its parameters, so the tensors of the outermost are named after the module, those
of the next one after its `base_layer`. The factors of a stack are stored as matrices: A (E r, D), expert by expert, and
B (F, r E), rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import mlx.core as mx

from macllm.errors import CheckpointError
from macllm.nn.lora import Update

# Parameters of transformers' experts in the order of their definition: PEFT wraps the first one innermost.
STACKS = ("gate_up_proj", "down_proj")
_OWNER, _WRAPPED, _WEIGHT = ".experts", ".base_layer", ".weight"
_ENDS = tuple(f"{_OWNER}.{name}" for name in STACKS)
_RENAMED = ".block_sparse_moe."  # in names that PEFT translates itself, routers among them
# Routers, and the projections that PEFT moves to the routed experts of a mixture, also where a dense layer or a shared
# expert has the name.
_OF_EXPERTS = ("gate", "router", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
VERSION = "0.20.0"
"""The first version of PEFT with this layout; before, a stack's inputs could be on either side."""


def readable(targets: object) -> bool:
    """True for target_parameters that are stacks of experts, or matrices of modules."""
    if not isinstance(targets, list):
        return not targets
    return all(isinstance(name, str) and name.rpartition(".")[2] in ("weight", *STACKS) for name in targets)


def is_parameter(name: str) -> bool:
    """True for the name of a parameter, not of a module."""
    return name.endswith((_WEIGHT, *_ENDS))


def is_stack(name: str) -> bool:
    """True for the name of a stack of experts."""
    return name.endswith(_ENDS)


def of_class(
    config: Mapping[str, Any], *, as_parameters: bool
) -> tuple[Callable[[str], list[str]], Callable[[str], list[str]]]:
    """Names of theirs by ours, and ours by theirs, for a class of mlx-lm; ours are one level down.

    With `as_parameters`, the modules of a mixture of experts that PEFT takes for experts are parameters, which it
    leaves in place.
    """
    ends = _OF_EXPERTS if as_parameters and any("expert" in key and value for key, value in config.items()) else ()

    def theirs(ours: str) -> list[str]:
        name = ours.removeprefix("model.")
        return [name + _WEIGHT if name.rpartition(".")[2] in ends and _RENAMED not in name else name]

    return theirs, lambda name: [f"model.{name.removesuffix(_WEIGHT)}"]


def named(module: str, config: Mapping[str, Any]) -> str:
    """The parameter whose update is stored under `module`; the module itself if there is none."""
    owner = module
    while owner.endswith(_WRAPPED):
        owner = owner.removesuffix(_WRAPPED)
    targets = config.get("target_parameters") or ()
    if not owner.endswith(_OWNER):
        return owner + _WEIGHT if _is_among(owner + _WEIGHT, targets) else module
    wrapped = [name for name in STACKS if _is_among(f"{owner}.{name}", targets)]
    depth = (len(module) - len(owner)) // len(_WRAPPED)
    return f"{owner}.{wrapped[-1 - depth]}" if depth < len(wrapped) else module


def _is_among(parameter: str, targets: Collection[str]) -> bool:
    return any(f".{parameter}".endswith(f".{target}") for target in targets)


def module_of(parameter: str, names: Collection[str]) -> str:
    """The name that a parameter's update is stored under if `names` are adapted; undoes `named`."""
    if not is_stack(parameter):
        return parameter.removesuffix(_WEIGHT)
    owner, _, own = parameter.rpartition(".")
    outside = STACKS[STACKS.index(own) + 1 :]
    return owner + _WRAPPED * sum(f"{owner}.{name}" in names for name in outside)


def unflattened(name: str, a: mx.array, b: mx.array, rank: int, config: Mapping[str, Any]) -> Update:
    """The update of a stack, A (E, r, D) and B (E, F, r), from its matrices (E r, D) and (F, r E).

    Raises CheckpointError for other shapes.
    """
    rows, inputs = a.shape
    outputs = b.shape[0]
    if rank < 1 or rows % rank or b.shape[1] != rows:
        raise CheckpointError(
            f"the adapter's factors of {name} do not match: A is {a.shape}, B is {b.shape}",
            cause=f"its rank is {rank}",
        )
    if inputs == outputs and _version(config) < (0, 20):
        raise CheckpointError(
            f"the adapter's update of {name} is ambiguous",
            cause="its experts are square, and versions of peft before 0.20 differ in which side the inputs are",
            remedy="merge it with the version of peft that trained it, and load the merged model",
        )
    return Update(a.reshape(-1, rank, inputs), b.reshape(outputs, rank, -1).transpose(2, 0, 1))


def flattened(update: Update) -> tuple[mx.array, mx.array]:
    """The matrices A (E r, D) and B (F, r E) of a stack's update."""
    a, b = update.a, update.b
    return a.reshape(-1, a.shape[2]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)


def _version(config: Mapping[str, Any]) -> tuple[int, ...]:
    words = str(config.get("peft_version") or "").split(".")[:2]
    return tuple(int(word) for word in words) if len(words) == 2 and all(map(str.isdecimal, words)) else (0,)


def oriented(update: Update, wanted: tuple[int, int], *, transposed: bool) -> Update:
    """The update of a parameter with its inputs at A, and its outputs at B.

    PEFT takes a stack for (E, out, in), and older versions for (E, in, out): where the numbers of inputs and outputs
    `wanted` fit one side only, they decide, else `transposed`, if the parameter is stored (in, out).
    """
    ways = {False: update, True: turned(update)}
    fit = [way for way, each in ways.items() if _sizes(each) == wanted]
    return ways[fit[0] if len(fit) == 1 else transposed]


def _sizes(update: Update) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    return (update.a.shape[-1] if update.a.ndim == 3 else update.a.shape[0]), update.b.shape[1]


def stacked(experts: Mapping[tuple[str, int, int], Update]) -> dict[str, Update]:
    """The updates of stacks from those of single experts, by name, size of the stack and position.

    An expert without an update gets zeros. Raises CheckpointError for more experts than the stack has, and for DoRA.
    """
    found: dict[tuple[str, int], dict[int, Update]] = {}
    for (name, count, e), update in experts.items():
        found.setdefault((name, count), {})[e] = update
    for (name, count), updates in found.items():
        if max(updates) >= count:
            raise CheckpointError(f"the adapter's {name} has {max(updates) + 1} experts, the model's {count}")
    return {name: _stack(count, updates) for (name, count), updates in found.items()}


def _stack(count: int, updates: Mapping[int, Update]) -> Update:
    if any(update.magnitude is not None for update in updates.values()):
        raise CheckpointError(
            "the adapter has DoRA magnitudes of experts, which macllm cannot apply",
            remedy="merge it with the tool that made it, and load the merged model",
        )
    first = next(iter(updates.values()))
    scale = next((update.scale for update in updates.values() if update.scale), 0.0)
    rank = max(update.a.shape[1] for update in updates.values())
    none = Update(first.a[:, :0], first.b[:0], scale)
    a, b = [], []
    for each in (updates.get(e, none) for e in range(count)):
        more = (0, rank - each.a.shape[1])
        a.append(mx.pad(each.a.T, [more, (0, 0)]))
        b.append(mx.pad(each.scaled_b(scale).T, [(0, 0), more]))
    return Update(mx.stack(a), mx.stack(b), scale)


def turned(update: Update) -> Update:
    """The update of the transposed matrix: the factors change places."""
    return update._replace(a=update.b.swapaxes(-1, -2), b=update.a.swapaxes(-1, -2))
