"""Settings of batches and of the length of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .setting_group import MOST, SettingGroup


@dataclass(frozen=True, kw_only=True)
class BatchSettings(SettingGroup):
    """Settings of batches and of the length of a run."""

    SUBJECT = "Batches and length"
    RANGES = (
        ("batch_size", 1, MOST),
        ("grad_accumulation_steps", 1, MOST),
        ("iters", 0, MOST),
        ("seed", 0, MOST),
    )

    batch_size: Annotated[int, "rows per micro-batch"] = 4
    packing: Annotated[
        bool, "several examples in each row of max_seq_length tokens, none sees another; batch_size counts rows"
    ] = False
    grad_accumulation_steps: Annotated[int, "number of micro-batches per optimizer step"] = 1
    iters: Annotated[int, "optimizer steps; 0: determined by `epochs`"] = 0
    epochs: Annotated[float, "passes over the data, when `iters` is 0"] = 3.0
    seed: Annotated[int, "random seed of row order, initial weights and dropout"] = 0


@dataclass(frozen=True, kw_only=True)
class MemorySettings(SettingGroup):
    """Settings that save memory at the cost of time."""

    SUBJECT = "Memory"

    grad_checkpoint: Annotated[
        bool | None, "compute layers again for the gradients: less memory, a third slower; unset: once memory is full"
    ] = None
