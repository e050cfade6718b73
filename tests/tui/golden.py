"""Text pictures of screens, kept in `golden/`; WRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from textual.app import App

FOLDER = Path(__file__).with_name("golden")


def screen_text(app: App[Any]) -> str:
    """The lines on the screen."""
    rows: dict[float, str] = {}
    pattern = r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"[^>]*>(.*?)</text>'
    for x, y, length, written in re.findall(pattern, app.export_screenshot(simplify=False), re.DOTALL):
        text = html.unescape(written).replace("\xa0", " ")
        column = round(float(x) * cell_len(text) / float(length)) if float(length) else 0
        rows[float(y)] = rows.get(float(y), "").ljust(column) + text
    return "\n".join(row.rstrip() for _, row in sorted(rows.items()))


def check(text: str, name: str) -> None:
    """Compare a screen with the picture of this name."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")
