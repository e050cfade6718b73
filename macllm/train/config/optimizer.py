"""Settings that only some optimizers read."""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal["adamw", "muon", "lion"]

_READERS: dict[str, tuple[OptimizerName, ...]] = {
    "adamw_rate": ("muon",),
    "beta2": ("adamw", "muon"),
    "epsilon": ("adamw", "muon"),
    "momentum": ("muon", "lion"),
    "first_moment_bits": ("adamw", "lion"),
}


def unread(optimizer: OptimizerName) -> list[str]:
    """The settings that this optimizer does not read."""
    return [name for name, readers in _READERS.items() if optimizer not in readers]
