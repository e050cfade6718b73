"""Adapters of one model as text: a folder, or folders with weights, as `a + b:0.5`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from macllm.errors import UsageError

_BETWEEN = " + "


def parse(text: str) -> dict[str, float]:
    """Weights by folder; the weight of a folder alone is 1. A text that names a folder is that folder.

    Raises UsageError for a weight that is not a finite number, and for a folder given twice.
    """
    if Path(text).expanduser().is_dir():
        return {text: 1.0}
    return once([_weighted(part) for part in text.split(_BETWEEN)])


def parse_all(texts: Iterable[str]) -> dict[str, float]:
    """Weights by folder of several texts. Raises UsageError as `parse` does."""
    return once([pair for text in texts for pair in parse(text).items()])


def once(pairs: list[tuple[str, float]]) -> dict[str, float]:
    """Weights by folder. Raises UsageError for a folder given twice, also under two paths."""
    blend = dict(pairs)
    if len({Path(folder).expanduser().resolve() for folder, _ in pairs}) < len(pairs):
        given = ", ".join(folder for folder, _ in pairs)
        raise UsageError(f"an adapter is given twice: {given}", remedy="each once, with the sum of its weights")
    return blend


def joined(parts: Iterable[str]) -> str | None:
    """One text for several, None for none."""
    return _BETWEEN.join(parts) or None


def written(blend: Mapping[str, float]) -> str:
    """The text that `parse` reads as these weights."""
    return _BETWEEN.join(name if weight == 1 else f"{name}:{_digits(weight)}" for name, weight in blend.items())


def _digits(weight: float) -> str:
    """The shortest text that is read as this number."""
    return repr(float(weight)).removesuffix(".0")


def renamed(text: str, name: Callable[[str], str]) -> str:
    """The text with `name` applied to each folder."""
    return written({name(folder): weight for folder, weight in parse(text).items()})


def _weighted(part: str) -> tuple[str, float]:
    folder, colon, weight = part.rpartition(":")
    if not colon or Path(part).expanduser().is_dir():
        return part, 1.0
    try:
        number = float(weight)
    except ValueError:
        return part, 1.0
    if not math.isfinite(number) or not folder:
        raise UsageError(f"cannot read the adapter {part!r}", cause="a weight is a finite number", remedy="FOLDER:0.5")
    return folder, number
