"""Subjects of settings, in the order in which people meet them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .training import TrainConfig

_EARLY = ("Objective", "Model and adapter", "Model")


def subjects(kind: type[TrainConfig]) -> dict[str, list[str]]:
    """The names of the fields of a config by the subject of the mixin that they come from."""
    found: dict[str, list[str]] = {title: [] for title in _EARLY}
    for field in dataclasses.fields(kind):
        first = next(each for each in reversed(kind.__mro__) if field.name in vars(each).get("__annotations__", {}))
        found.setdefault(vars(first)["SUBJECT"], []).append(field.name)
    return {title: names for title, names in found.items() if names}
