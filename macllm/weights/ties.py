"""Tied matrices: stored once under any of several names, or several times.

A duplicate is dropped only if it equals the tensor that replaces it: a head that the config calls tied but that differs
in the file is kept, as in transformers 5 (`PreTrainedModel.tie_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from .keymap import KeyMap, Tie, Weights


def resolve_ties(tensors: Weights, keymap: KeyMap) -> dict[str, str]:
    """Normalize tied matrices in place: the source alone if all are equal, else each that differs.

    Stored tensors that equal their computed values are dropped.

    Returns the old names of renamed modules -> their new names.
    """
    for computed in keymap.computed:
        for name in [at for at in keymap.spellings(computed.theirs) if at in tensors]:
            if _is_near(tensors[name], mx.array(computed.make())):
                del tensors[name]
    renamed: dict[str, str] = {}
    for tie in keymap.ties:
        names = (tie.source, *tie.tables, *tie.heads)
        stored = {name: found for name in names if (found := _stored(name, tie, tensors, keymap))}
        if not stored:
            continue
        values = {name: {leaf: tensors.pop(at) for leaf, at in found.items()} for name, found in stored.items()}
        for role, name in _roles(tie, values).items():
            tensors.update({_joined(role, leaf): array for leaf, array in values[name].items()})
            renamed |= {at.removesuffix(".weight"): role for at in stored[name].values() if at.endswith(".weight")}
    return renamed


def _roles(tie: Tie, stored: Mapping[str, Weights]) -> dict[str, str]:
    """Name in the normalized form -> the stored module for it."""
    first = next(iter(stored))  # the source, else the first stored one of the others
    tables = {table: table if table in stored else first for table in tie.tables or (tie.source,)}
    heads = {head: head if head in stored else first for head in tie.heads}
    shared = next(iter(tables.values()))
    if not all(_equal(stored[shared], stored[name]) for name in tables.values()):
        return tables | heads
    return {tie.source: shared} | {h: name for h, name in heads.items() if not _equal(stored[shared], stored[name])}


def _stored(name: str, tie: Tie, tensors: Mapping[str, mx.array], keymap: KeyMap) -> dict[str, str]:
    """Leaf -> its name in the checkpoint; {} for a module that is not stored."""
    found: dict[str, str] = {}
    for leaf in tie.leaves:
        spelled = [at for at in keymap.spellings(_joined(name, leaf)) if at in tensors]
        found |= {leaf: spelled[0]} if spelled else {}
    return found


def _joined(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if leaf else name


def _equal(one: Mapping[str, mx.array], other: Mapping[str, mx.array]) -> bool:
    if one is other:
        return True
    same = one.keys() == other.keys() and all(array.shape == other[leaf].shape for leaf, array in one.items())
    return same and all(bool(mx.array_equal(array, other[leaf], equal_nan=True)) for leaf, array in one.items())


def _is_near(stored: mx.array, computed: mx.array) -> bool:
    """True if the values are equal up to the rounding of the stored dtype."""
    if stored.shape != computed.shape:
        return False
    tolerance = 1e-6 if stored.dtype == mx.float32 else 2.0**-8
    return bool(mx.allclose(stored.astype(mx.float32), computed, rtol=0, atol=tolerance))
