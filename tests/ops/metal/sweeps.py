"""Cases of tests: each value of each axis in a quick one, all of their combinations in slow ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest


def sweep(*axes: Sequence[Any]) -> list[Any]:
    """Pytest parameters of all combinations, most of them marked slow.

    Quick are the combinations of all first values, of all second values and so on; shorter axes repeat.
    """
    most = max(map(len, axes))
    quick = {tuple(i % len(axis) for axis in axes) for i in range(most)}
    cases = []
    for at in product(*(range(len(axis)) for axis in axes)):
        chosen = [axis[i] for axis, i in zip(axes, at, strict=True)]
        marks = [mark for one in chosen for mark in getattr(one, "marks", ())]
        marks += [] if at in quick else [pytest.mark.slow]
        values = [value for one in chosen for value in _values(one)]
        cases.append(pytest.param(*values, marks=marks, id="-".join(map(_name, chosen))))
    return cases


def _values(one: Any) -> tuple[Any, ...]:
    """Arguments of a test from a value: several if it is a plain tuple or a `pytest.param`."""
    if hasattr(one, "values") and hasattr(one, "marks"):
        return tuple(one.values)
    return one if type(one) is tuple else (one,)


def _name(one: Any) -> str:
    named = getattr(one, "id", None)
    return named if isinstance(named, str) else str(one).removeprefix("mlx.core.")
