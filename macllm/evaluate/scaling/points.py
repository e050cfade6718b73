"""Runs in a table: CSV or JSON lines with parameters, tokens and loss."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from macllm.errors import DataError

from .fits import Runs
from .laws import FLOPS_PER_PARAMETER

_NAMES: Mapping[str, tuple[str, ...]] = {
    "parameters": ("parameters", "params", "n"),
    "tokens": ("tokens", "d"),
    "flops": ("flops", "compute", "c"),
    "loss": ("loss",),
}
_REMEDY = "columns parameters, tokens (or flops) and loss"


def read(path: Path) -> Runs:
    """The runs of a CSV file with a header, or of JSON lines.

    Of parameters, tokens and flops two are enough: flops = 6 parameters tokens. Raises DataError with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}", cause=error.strerror) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a table", cause="it is not UTF-8", remedy=_REMEDY) from error
    return runs([_point(row, place) for row, place in _rows(text, str(path))], str(path))


def runs(points: Iterable[tuple[float, float, float]], place: str) -> Runs:
    """Runs of (parameters, tokens, loss). Raises DataError if there are none."""
    found = np.array(list(points), dtype=np.float64).reshape(-1, 3)
    if not len(found):
        raise DataError(f"{place} has no runs", remedy=_REMEDY)
    return Runs(*found.T)


def _rows(text: str, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows, keys in lower case, and their places."""
    lines = text.splitlines()
    if text.lstrip().startswith("{"):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is not JSON", cause=str(error)) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number} is not an object", remedy=_REMEDY)
            yield (
                {str(key).strip().lower(): value for key, value in cast("dict[str, Any]", row).items()},
                f"{path}:{number}",
            )
        return
    reader = csv.DictReader(lines)
    for row in reader:
        yield {str(key).strip().lower(): value for key, value in row.items()}, f"{path}:{reader.line_num}"


def _point(row: Mapping[str, Any], place: str) -> tuple[float, float, float]:
    """Parameters, tokens and loss of a row."""
    values = {name: _number(row, name, place) for name in _NAMES}
    parameters, tokens, flops, loss = values.values()
    if loss is None:
        raise DataError(f"{place} has no loss", remedy=_REMEDY)
    if parameters is not None and tokens is not None:
        return parameters, tokens, loss
    if flops is not None and parameters is not None:
        return parameters, flops / (FLOPS_PER_PARAMETER * parameters), loss
    if flops is not None and tokens is not None:
        return flops / (FLOPS_PER_PARAMETER * tokens), tokens, loss
    raise DataError(
        f"{place} has too few numbers", cause="two of parameters, tokens and flops are needed", remedy=_REMEDY
    )


def _number(row: Mapping[str, Any], name: str, place: str) -> float | None:
    """The positive number of a column, None without the column."""
    found = next((row[key] for key in _NAMES[name] if row.get(key) not in (None, "")), None)
    if found is None:
        return None
    try:
        number = float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise DataError(f"{place}: {name} is {found!r}", cause="it must be a positive number")
    return number
