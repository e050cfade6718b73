"""A bug, and the claim that it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug: `put` puts it back, and then `claim` must fail; it takes an empty folder."""

    name: str
    put: Callable[[Patch], object]
    claim: Callable[[Path], object]


def claim(test: Callable[..., object], *arguments: Any) -> Callable[[Path], object]:
    """A test without fixtures."""
    return lambda _: test(*arguments)


def in_folder(test: Callable[..., object], *arguments: Any) -> Callable[[Path], object]:
    """A test that takes `tmp_path` first."""
    return lambda folder: test(folder, *arguments)
