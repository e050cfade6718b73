"""Subjects of settings, in the order in which people meet them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .training import TrainConfig

# The first field of each subject; the fields up to the next first one belong to it too.
_FIRST = {
    "objective": "Objective",
    "model": "Model and adapter",
    "config": "Model",
    "data": "Data",
    "label_smoothing_factor": "Text to text",
    "router_aux_loss_coef": "Experts",
    "mask_ratio": "Corruption of texts",
    "beta": "Preferences",
    "teacher": "Distillation",
    "centering": "Reward models",
    "rewards": "Reinforcement",
    "context_length": "Longer context",
    "batch_size": "Batches and length",
    "optimizer": "Optimizer and learning rate",
    "beta1": "Moments, decay and clipping",
    "grad_checkpoint": "Memory",
    "steps_per_report": "Reports and evaluation",
    "save_every": "Snapshots and the run",
}
_EARLY = ("objective", "model", "config")


def subjects(kind: type[TrainConfig]) -> dict[str, list[str]]:
    """The names of the fields of a config by subject."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for field in dataclasses.fields(kind):
        if field.name in _FIRST:
            names = found.setdefault(_FIRST[field.name], [])
        names.append(field.name)
    early = [title for first in _EARLY if (title := _FIRST[first]) in found]
    return {title: found[title] for title in [*early, *(each for each in found if each not in early)]}
