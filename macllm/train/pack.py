"""Packing: rows into as few bins as possible."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from macllm.errors import UsageError
from macllm.nn.info import Described

from .contract import Packs

if TYPE_CHECKING:
    from .config import TrainConfig

_REMEDY = "packing = false"


def best_fit(lengths: Any, size: int) -> list[list[int]]:
    """Best-fit-decreasing: indices of `lengths` (N,) in bins of total length `size`, longest rows first.

    Each row goes into the fullest bin that it fits in (the newest of equally full ones), else into a new one. Rows of
    equal length keep their order. At most 11/9 of the fewest possible bins, plus one (Johnson et al. 1974,
    doi:10.1137/0203025). A longer row has a bin of its own.
    """
    bins: list[list[int]] = []
    by_room: defaultdict[int, list[int]] = defaultdict(list)  # bins by the length that is left in them
    rooms = 0  # bit n is set if a bin has n left
    for row in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[row])
        fitting = rooms >> length
        if not fitting:
            bins.append([])
            number, room = len(bins) - 1, max(size, length)
        else:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        bins[number].append(row)
        by_room[room - length].append(number)
        rooms |= 1 << room - length
    return bins


def bin_size(config: TrainConfig, model: object, objective: object) -> int:
    """Tokens that share a row of a batch; 0 without packing.

    Raises UsageError for a model or an objective that cannot keep the rows apart.
    """
    if not config.packing:
        return 0
    if not isinstance(objective, Packs):
        raise UsageError(
            "packing cannot be used here", cause=f"{type(objective).__name__} has no packed batches", remedy=_REMEDY
        )
    if not isinstance(model, Described) or not model.info.packs:
        raise UsageError(
            "packing cannot be used with this model",
            cause="rows one after another would see each other in it",
            remedy=_REMEDY,
        )
    size = config.max_seq_length
    longest = min(size, model.info.context_length or size)
    if model.info.rotation_class(1) != model.info.rotation_class(longest):
        raise UsageError(
            "packing cannot be used at this length",
            cause=f"the model's rotary positions differ between short rows and rows of {longest} tokens",
            remedy=f"a lower max_seq_length, or {_REMEDY}",
        )
    return size
