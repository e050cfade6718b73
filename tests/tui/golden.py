"""Text pictures of screens, kept in `golden/`; WRITE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from textual._compositor import LayoutUpdate
from textual.app import App

FOLDER = Path(__file__).with_name("golden")


def screen_text(app: App[Any]) -> str:
    """The lines on the screen."""
    compositor = app.screen._compositor
    update = compositor.render_update(full=True, screen_stack=app._background_screens)
    assert isinstance(update, LayoutUpdate)
    return "\n".join("".join(strip.text for strip in line).rstrip() for line in update.strips)


def check(text: str, name: str) -> None:
    """Compare a screen with the picture of this name."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")
