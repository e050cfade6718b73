"""The part of the loop that depends on an objective generating its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import mlx.nn as nn

from macllm.errors import UsageError
from macllm.nn.protocol import LanguageModel

from .contract import Arrays, Generates, Keeps, Loss, Source


def generated(objective: Any, rows: Source[Any], micro_batch: int, processes: int) -> Source[Any]:
    """The batches that the objective makes of those of `rows`: these, or answers to them.

    Raises UsageError for answers that several processes would generate.
    """
    if not isinstance(objective, Generates):
        return rows
    if processes > 1:
        raise UsageError("an objective that generates answers runs in one process", cause=f"there are {processes}")
    return objective.source(rows, micro_batch)


def measure(objective: Any, model: nn.Module, batch: Any, loss: Callable[[Any], Loss]) -> Loss:
    """The measure of validation on a batch: the loss, or the objective's own for generated answers."""
    return objective.evaluate(cast("LanguageModel", model), batch) if isinstance(objective, Generates) else loss(batch)


def kept_by(source: Source[Any], step: int) -> Arrays:
    """The arrays of earlier steps that the source needs for step `step`."""
    return source.kept(step) if isinstance(source, Keeps) else {}


def restore(source: Source[Any], kept: Arrays) -> None:
    """Give a source what it kept."""
    if isinstance(source, Keeps):
        source.restore(kept)
