"""The text of a comparison of two runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from macllm.visible import one_line

if TYPE_CHECKING:
    from macllm.train.runs.compare import ComparedRuns

_MOST_STEPS = 16  # rows of the table; the others are left out evenly
_MOST_CHARS = 32


def lines(found: ComparedRuns, titles: tuple[str, str]) -> Iterator[str]:
    """Settings that differ, last and best losses, and losses by step, in columns."""
    first, second = found.statuses
    rows: list[Sequence[str]] = [("", *titles)]
    rows += [(name, *map(_value, pair)) for name, pair in found.settings.items()]
    rows += [
        ("state", first.state, second.state),
        ("step", f"{first.step}/{first.steps}", f"{second.step}/{second.steps}"),
        ("last loss", _loss(first.loss), _loss(second.loss)),
        ("last validation loss", _loss(first.valid_loss), _loss(second.valid_loss)),
        ("best validation loss", *(f"{_loss(one.best_loss)} at {one.best_step or '-'}" for one in (first, second))),
    ]
    yield from _columns(rows)
    for title, curve in (("loss", found.loss), ("validation loss", found.valid_loss)):
        steps = list(curve)
        if len(steps) > _MOST_STEPS:
            steps = [steps[n * (len(steps) - 1) // (_MOST_STEPS - 1)] for n in range(_MOST_STEPS)]
        if steps:
            yield ""
            yield from _columns([(title, *titles), *((f"step {step}", *map(_loss, curve[step])) for step in steps)])


def _columns(rows: list[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _value(value: Any) -> str:
    text = one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _MOST_CHARS else f"...{text[-_MOST_CHARS + 3 :]}"


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
