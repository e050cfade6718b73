"""Index of the benchmarks: `python -m tests.bench`. Each is run by `python tests/bench/NAME.py`."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent


def index() -> dict[str, str]:
    """The first sentence of each benchmark's docstring, by file."""
    found: dict[str, str] = {}
    for path in sorted(HERE.glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' in text:
            about = " ".join((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split())
            found[path.name] = about.partition(". ")[0].partition(": `python ")[0].rstrip(".")
    return found


def main() -> None:
    """Print the index."""
    rows = index()
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {about}" for name, about in rows.items()))


if __name__ == "__main__":
    main()
