"""Mutant tables in `models/METAL.md`: `python -m tests.simulator.mutants.page` rewrites them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from . import kernel_mutants, mutations

PAGE = Path(__file__).parents[3] / "models" / "METAL.md"
TABLES: dict[str, Callable[[], int]] = {"mutations": mutations.main, "kernel_mutants": kernel_mutants.main}


def written(text: str) -> str:
    """The page with current tables."""
    for name, main in TABLES.items():
        begin, end = f"<!-- python -m tests.simulator.mutants.{name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = text.partition(begin)
        table = io.StringIO()
        with contextlib.redirect_stdout(table):
            main()
        text = before + begin + table.getvalue() + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
