"""A table of measurements: rows, the limit that they must keep, and the verdict."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Say = Callable[[str], None]
"""Takes a line of progress."""

PACKAGES = ("mlx", "numpy", "torch", "transformers", "peft", "mlx-lm")


@dataclass(frozen=True)
class Table:
    """One table: a row is a list of cells, `held` is the verdict on `limit`, None without one.

    `values` are the numbers behind the cells, for the line of JSON.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    limit: str
    held: bool | None
    values: dict[str, Any] = field(default_factory=dict)

    def markdown(self, seconds: float) -> str:
        """The table in Markdown, under a heading and above its limit and verdict."""
        lines = [f"## {self.title}", "", line(self.columns), line("---" for _ in self.columns)]
        lines += map(line, self.rows)
        verdict = {True: "held", False: "**missed**", None: "none, too little was measured"}[self.held]
        return "\n".join([*lines, "", f"Limit: {self.limit}. Verdict: {verdict}, after {seconds:.0f} s.", "", about()])

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {**asdict(self), "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


def line(cells: Any) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def machine() -> dict[str, str]:
    """Date, machine and versions."""
    found = {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def about() -> str:
    """Date, machine and versions in a line."""
    return ", ".join(value if name in ("date", "machine") else f"{name} {value}" for name, value in machine().items())
