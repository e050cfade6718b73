"""Changes to the configuration file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .settings import ConfigFile, config_path, load, parse
from .toml_text import with_value


def edit(change: Callable[[str], str], check: Callable[[ConfigFile], object] = lambda config: None) -> ConfigFile:
    """Change the text of the file and return its new content; a link to it stays one.

    Raises: UsageError if its content is or would be wrong; what `check` raises for the new content.
    """
    from macllm.files import write_text

    file = config_path()
    load(file)
    text = change(file.read_bytes().decode("utf-8-sig") if file.exists() else "")
    found = parse(text, file)
    check(found)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file.resolve(), text)
    return found


def keep(table: str, name: str, value: Any) -> ConfigFile:
    """Write the value of a setting into the file. Raises: UsageError."""
    return edit(lambda text: with_value(text, (table, name), value))
