"""`macllm config`: the settings, the origin of each, and changes to their file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from macllm.errors import UsageError

from . import names

if TYPE_CHECKING:
    from macllm.config.settings import ConfigFile, Resolved

_VALUE_WIDTH = 40


@click.group("config")
def command() -> None:
    """Show and change the settings: model, sampling, colors, keys and presets.

    A value comes from a flag, else from the environment (as in MACLLM_TEMPERATURE), else from the file, else from
    the model's generation_config.json, else from macllm. The tables of the file are [chat], [sampling], [ui], [keys]
    and, for each preset, [presets.NAME] with a system prompt and sampling values.
    """


@command.command("path")
def path() -> None:
    """Print the path of the file, existing or not."""
    from macllm.config.settings import config_path

    click.echo(config_path())


@command.command("show")
@click.argument("key", required=False, shell_complete=names.settings)
@click.option("-m", "--model", metavar="NAME", shell_complete=names.models, help="Show the values for this model.")
@click.option("-p", "--preset", metavar="NAME", shell_complete=names.presets, help="Show the values with this preset.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def show(key: str | None, model: str | None, preset: str | None, as_json: bool) -> None:
    """Print each setting with its value and origin; KEY: only one, as sampling.top_p, or one table."""
    rows = _rows(model, preset)
    if key is not None:
        rows = {name: found for name, found in rows.items() if _is_of(key, name)}
        if not rows:
            from macllm.config.schema import nearest

            raise UsageError(f"unknown setting {key}", remedy=nearest(key) or "macllm config show")
    if as_json:
        values = {name: {"value": found.value, "origin": found.source} for name, found in rows.items()}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
        return
    shown = {name: _shown(found.value) for name, found in rows.items()}
    name_width = max(map(len, rows))
    value_width = min(max(map(len, shown.values())), _VALUE_WIDTH)
    for name, found in rows.items():
        click.echo(f"{name:{name_width}}  {shown[name]:{value_width}}  {found.source}")


@command.command("set")
@click.argument("key", shell_complete=names.settings)
@click.argument("value")
def set_value(key: str, value: str) -> None:
    """Write VALUE for KEY into the file, as sampling.temperature 0.7 or keys.stop ctrl+x."""
    write(key, value)


def write(key: str, value: str) -> None:
    """Write a setting into the file of the user. Raises: UsageError."""
    from macllm.config.schema import setting
    from macllm.config.toml_text import with_value

    tables = _names(key)
    try:
        content = value if tables[0] == "keys" else setting(key).read(value)
    except UsageError as error:
        raise UsageError(error.message, cause=error.cause, remedy=error.remedy or "macllm config show") from error
    _edit(lambda text: with_value(text, tables, content))


@command.command("unset")
@click.argument("key", shell_complete=names.settings)
def unset_value(key: str) -> None:
    """Remove KEY from the file."""
    remove(key)


def remove(key: str) -> None:
    """Remove a setting from the file of the user. Raises: UsageError."""
    from macllm.config.toml_text import without_value

    _edit(lambda text: without_value(text, _names(key)))


def _names(key: str) -> tuple[str, ...]:
    """The tables and the name in a key. The name of a preset may have dots. Raises: UsageError."""
    table, _, name = key.partition(".")
    if table == "presets" and "." in name:
        preset, _, name = name.rpartition(".")
        return table, preset, name
    if not name:
        from macllm.config.schema import nearest

        raise UsageError(f"unknown setting {key}", remedy=nearest(key) or "macllm config show")
    return table, *(name.split(".") if table == "keys" else [name])


def _is_of(key: str, name: str) -> bool:
    """True if a setting is `key` or in the table `key`; `keys.stop` is `keys.chat.stop`."""
    table, _, inner = key.partition(".")
    unscoped = table == "keys" and name.startswith("keys.") and name.endswith(f".{inner}")
    return name == key or name.startswith(f"{key}.") or (bool(inner) and unscoped)


def _edit(change: Callable[[str], str]) -> None:
    """Change the file. Raises: UsageError if its content is or would be wrong."""
    from macllm.config.editing import edit

    edit(change, _check_keys)


def _check_keys(config: ConfigFile) -> None:
    from macllm_tui.keymap import Keymap

    for note in Keymap.of(config).notes:
        raise UsageError(note)


def _rows(model: str | None, preset: str | None) -> dict[str, Resolved]:
    """All settings, keys and presets by key."""
    from macllm.config.model_defaults import model_defaults
    from macllm.config.schema import CHAT, UI
    from macllm.config.settings import DEFAULT, Resolved

    from .configured import configured

    found = configured({"chat.model": model}, {}, preset=preset)
    rows = {each.key: Resolved(each.default, DEFAULT) for each in (*CHAT, *UI)}
    rows |= model_defaults(found["chat.model"]) | dict(found.settings) | _keys(found.config)
    for name, each in found.config.presets.items():
        values = dict(each.sampling) | ({"system": each.system} if each.system is not None else {})
        for inner, value in values.items():
            key = f"presets.{name}.{inner}"
            rows[key] = Resolved(value, found.config.origin(key))
    return rows


def _keys(config: ConfigFile) -> dict[str, Resolved]:
    from macllm.config.settings import DEFAULT, Resolved
    from macllm_tui.keymap import Keymap

    keymap = Keymap.of(config)
    return {
        f"keys.{scope}.{key.id}": Resolved(key.keys, keymap.origins.get(f"{scope}.{key.id}", DEFAULT))
        for scope, keys in keymap.keys.items()
        for key in keys
    }


def _shown(value: object) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
