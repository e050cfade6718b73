"""Settings that only some objectives read."""

from __future__ import annotations

from typing import Literal

FinetuneObjective = Literal["sft", "orpo", "simpo"]

_READERS: dict[str, tuple[FinetuneObjective, ...]] = {
    "mask_prompt": ("sft",),
    "packing": ("sft",),
    "beta": ("orpo", "simpo"),
    "gamma": ("simpo",),
}


def unread(objective: FinetuneObjective) -> list[str]:
    """The settings that this objective does not read."""
    return [name for name, readers in _READERS.items() if objective not in readers]
