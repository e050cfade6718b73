"""Checks of macllm's own files and of the terminal, for `macllm doctor`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from macllm.errors import MacllmError

# Terminals that tell Shift+Enter from Enter, with the keyboard protocol of Kitty
_PROTOCOL = {"kitty", "ghostty", "WezTerm", "iTerm.app", "rio", "WarpTerminal"}
_OPTION = {
    "Apple_Terminal": "Settings, Profiles, Keyboard: Use Option as Meta key",
    "iTerm.app": "Settings, Profiles, Keys: Left Option key: Esc+",
    "vscode": "terminal.integrated.macOptionIsMeta in the settings",
}


def conversations() -> dict[str, Any]:
    """The file of conversations."""
    from macllm.chat.condition import condition

    return condition()


def settings(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The configuration file and the environment's settings.

    `problem` is the first error, with its remedy.
    """
    from macllm.config.settings import config_path, from_environment, load
    from macllm_tui.keymap import Keymap

    path = config_path()
    found: dict[str, Any] = {"file": str(path) if path.exists() else f"{path}: none"}
    try:
        config = load(path)
        found |= {"values": len(config.values), "presets": len(config.presets), "keys": len(config.keys)}
        if notes := Keymap.of(config).notes:
            found["warning"] = "; ".join(notes)
        if variables := from_environment(environ):
            found["environment"] = list(variables)
    except MacllmError as error:
        reasons = [error.message, error.cause, error.remedy and f"try: {error.remedy}"]
        found["problem"] = " ".join(filter(None, reasons))
    return found


def terminal(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The interface that the chat takes here, the keys that begin a new line, and a terminal's Option key."""
    from macllm.config.settings import load
    from macllm_tui.keymap import DEFAULTS, Keymap, shown

    kind, program = environ.get("TERM", "dumb"), environ.get("TERM_PROGRAM", "")
    if kind == "dumb":
        return {"chat": "lines, because TERM names no terminal", "new_line": "\\ before Enter"}
    try:
        keymap = Keymap.of(load())
    except MacllmError:
        keymap = DEFAULTS
    keys = next(key.keys for key in keymap.keys["prompt"] if key.id == "newline").split(",")
    found: dict[str, Any] = {"chat": "full screen", "new_line": [shown(key) for key in keys if _arrives(key, environ)]}
    if (where := _OPTION.get(program)) is not None:
        found["option_key"] = f"acts as Alt after a change of the terminal: {where}"
    return found


def _arrives(key: str, environ: Mapping[str, str]) -> bool:
    """True if the terminal sends a key of its own for it, as far as its name tells."""
    *modifiers, name = key.split("+")
    if name == "enter" and {"shift", "ctrl", "super"} & set(modifiers):
        told = environ.get("TERM_PROGRAM") in _PROTOCOL or environ.get("TERM", "").endswith("kitty")
        return told and "TMUX" not in environ
    return "alt" not in modifiers or environ.get("TERM_PROGRAM") != "Apple_Terminal"
