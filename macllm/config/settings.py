"""Reading the configuration file, and the value of each setting with its origin.

A value comes from a flag, else from an environment variable, else from the file, else from the model's
generation_config.json, else from macllm. The values of a preset go before the rest of what names the preset: those
of `--preset` before the environment, those of `chat.preset` before the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macllm.errors import UsageError
from macllm.generation.sampling.ranges import shown

from .schema import SETTINGS, TABLES, like, nearest, setting

Values = dict[str, Any]
DEFAULT = "default"


@dataclass(frozen=True)
class Preset:
    """A named system prompt and sampling values."""

    name: str
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    def is_met(self, system: str | None, sampling: object) -> bool:
        """True if a system prompt, and sampling values as attributes, have all values of the preset."""
        met = all(getattr(sampling, name, None) == value for name, value in self.sampling.items())
        return met and self.system in (None, system)


@dataclass(frozen=True)
class ConfigFile:
    """The checked content of the configuration file; `lines` are those of its keys, from 1."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)  # by key, as in "chat.model"
    keys: Mapping[str, str] = field(default_factory=dict)  # by id, or scope and id
    presets: Mapping[str, Preset] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def origin(self, key: str) -> str:
        """The file and the line of a key."""
        return place(self.path, self.lines.get(key))

    def preset(self, name: str) -> Preset:
        """A preset. Raises: UsageError, with the presets there are, for an unknown name."""
        if name in self.presets:
            return self.presets[name]
        remedy = like(name, self.presets) or ", ".join(self.presets)
        from .toml_text import key_text

        table = f"a table [presets.{key_text(name)}] in {place(self.path, None)}"
        raise UsageError(f"no preset is named {name}", remedy=remedy or table)


@dataclass(frozen=True)
class Resolved:
    """A setting's value and where it comes from."""

    value: Any
    source: str


def config_path() -> Path:
    """The configuration file: in $MACLLM_HOME, else in macllm's folder of XDG's configuration."""
    if home := os.environ.get("MACLLM_HOME"):
        return Path(home) / "config.toml"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "macllm" / "config.toml"


def place(path: Path, line: int | None) -> str:
    """A file, with ~ for the home folder, and a line in it."""
    try:
        name = f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        name = str(path)
    return name if line is None else f"{name}, line {line}"


def load(path: Path | None = None) -> ConfigFile:
    """The configuration file; empty if there is none. Raises: UsageError, naming file, line and key."""
    path = path or config_path()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ConfigFile(path)
    except OSError as error:
        raise UsageError(
            f"cannot read {place(path, None)}", cause=error.strerror, remedy="check its permissions"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{place(path, line)}: this is not UTF-8", remedy="save it as UTF-8") from error
    return parse(text, path)


def parse(text: str, path: Path) -> ConfigFile:
    """The settings in a text. Raises: UsageError, naming `path`, line and key."""
    import tomllib

    from .toml_text import line_numbers

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{place(path, None)} is not TOML", cause=str(error), remedy="correct that line") from error
    lines = {".".join(names): line for names, line in line_numbers(text).items()}
    values: Values = {}
    keys: dict[str, str] = {}
    presets: dict[str, Values] = {}
    for names, value in _entries(tables):
        key = ".".join(names)
        try:
            match names:
                case (table,):
                    if table not in TABLES:
                        raise UsageError(f"unknown table [{table}]", remedy=_nearest_table(table))
                    _typed(value, dict, "a table")
                case ("keys", *inner):
                    keys[".".join(inner)] = _typed(value, str, "a text in quotes")
                case ("presets", name):
                    presets[name] = {}
                    _typed(value, dict, "a table")
                case ("presets", name, inner):
                    presets[name][inner] = setting(key).check(value)
                case _:
                    values[key] = setting(key).check(value)
        except UsageError as error:
            message = error.message if error.message.startswith("unknown") else f"{key}: {error.message}"
            raise UsageError(f"{place(path, lines.get(key))}: {message}", remedy=error.remedy) from error
    return ConfigFile(path, values, keys, {name: _preset(name, inner) for name, inner in presets.items()}, lines)


def _entries(tables: Values) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each table with its content, then what is in it; the tables in [presets] likewise."""
    for table, content in tables.items():
        yield (table,), content
        for name, value in content.items():
            if table == "keys" and isinstance(value, dict):  # keys of a scope, as in blocks.copy = "y"
                yield from (((table, name, inner), each) for inner, each in value.items())
                continue
            yield (table, name), value
            if table == "presets":
                yield from (((table, name, inner), each) for inner, each in value.items())


def _typed(value: Any, kind: type, kind_name: str) -> Any:
    if not isinstance(value, kind):
        raise UsageError(f"it is {shown(value)}; it must be {kind_name}")
    return value


def _nearest_table(table: str) -> str:
    if near := like(table, TABLES):
        return f"[{near}]"
    return nearest(f"chat.{table}") or f"one of {', '.join(f'[{name}]' for name in TABLES)}"


def _preset(name: str, values: Values) -> Preset:
    sampling = {inner: value for inner, value in values.items() if inner != "system"}
    return Preset(name, values.get("system"), sampling)


def from_environment(environ: Mapping[str, str]) -> Values:
    """The settings in environment variables, by key; empty ones count as unset. Raises: UsageError."""
    values: Values = {}
    for each in SETTINGS.values():
        if text := environ.get(each.variable):
            try:
                values[each.key] = each.read(text)
            except UsageError as error:
                message = error.message.replace(each.name, each.variable, 1)
                raise UsageError(message, cause=error.cause, remedy=error.remedy) from error
    return values


def resolve(
    config: ConfigFile, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, preset: str | None = None
) -> dict[str, Resolved]:
    """Value and origin of each setting that is set, by key. `flags` are by key too; None: not given.

    An adapter belongs to a model: one that is set with less right than the model is left out. Raises: UsageError.
    """
    layers = list(_layers(config, flags, environ, preset))
    resolved: dict[str, Resolved] = {}
    for layer in reversed(layers):
        resolved |= layer
    ranks = [
        next((rank for rank, layer in enumerate(layers) if key in layer), len(layers))
        for key in ("chat.model", "chat.adapter")
    ]
    if ranks[0] < ranks[1]:
        resolved.pop("chat.adapter", None)
    return resolved


def _layers(
    config: ConfigFile, flags: Mapping[str, Any], environ: Mapping[str, str], preset: str | None
) -> Iterator[dict[str, Resolved]]:
    """Values and origins, the strongest first."""
    given = {key: value for key, value in flags.items() if value is not None}
    for key in given.keys() & {"chat.max_tokens", "ui.theme"}:
        SETTINGS[key].check(given[key])
    yield {key: Resolved(value, f"flag {SETTINGS[key].flag}") for key, value in given.items()}
    if preset is not None:
        yield {"chat.preset": Resolved(preset, "flag --preset"), **_of_preset(config, preset)}
    variables = from_environment(environ)
    yield {key: Resolved(value, f"environment {SETTINGS[key].variable}") for key, value in variables.items()}
    named = variables.get("chat.preset", config.values.get("chat.preset"))
    if named is not None and preset is None:
        yield _of_preset(config, named)
    yield {key: Resolved(value, config.origin(key)) for key, value in config.values.items()}


def _of_preset(config: ConfigFile, name: str) -> dict[str, Resolved]:
    preset = config.preset(name)
    values = {f"sampling.{inner}": value for inner, value in preset.sampling.items()}
    if preset.system is not None:
        values["chat.system"] = preset.system
    keys = {key: f"presets.{name}.{key.partition('.')[2]}" for key in values}
    return {key: Resolved(value, f"preset {name}, {config.origin(keys[key])}") for key, value in values.items()}
