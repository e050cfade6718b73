"""Flags of a command completed from the environment and the configuration file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from macllm.config.schema import SETTINGS
from macllm.config.settings import ConfigFile, Preset, Resolved, load, resolve


@dataclass(frozen=True)
class Configured:
    """The settings of one call, those of flags included; `None` where nothing sets one."""

    config: ConfigFile
    settings: Mapping[str, Resolved]

    def __getitem__(self, key: str) -> Any:
        """The value of a setting by its key, as in `chat.model`."""
        return self.settings[key].value if key in self.settings else None

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling values by their names."""
        return _named(self.settings, "sampling.")

    @property
    def preset(self) -> Preset | None:
        """The preset that is named, if any."""
        name = self["chat.preset"]
        return None if name is None else self.config.preset(name)

    @property
    def chat(self) -> dict[str, Any]:
        """The values of the table [chat] by their names, that of the preset in their places."""
        return {name: value for name, value in _named(self.settings, "chat.").items() if name != "preset"}


def configured(
    flags: Mapping[str, Any], sampling: Mapping[str, Any], *, preset: str | None = None, ignored: Iterable[str] = ()
) -> Configured:
    """The settings of a call. `flags` are by key; None: not given. Only flags may set the `ignored` ones.

    Raises: UsageError for a wrong file, variable or preset.
    """
    config, environ = load(), dict(os.environ)
    for key in ignored:
        environ.pop(SETTINGS[key].variable, None)
    kept = replace(config, values={key: value for key, value in config.values.items() if key not in ignored})
    given = {**flags, **{f"sampling.{name}": value for name, value in sampling.items()}}
    return Configured(config, resolve(kept, given, environ, preset))


def _named(settings: Mapping[str, Resolved], table: str) -> dict[str, Any]:
    return {key.removeprefix(table): found.value for key, found in settings.items() if key.startswith(table)}
