"""The settings: their tables, types, ranges and environment variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from macllm.errors import UsageError
from macllm.generation.options import SAMPLING_NAMES
from macllm.generation.sampling.ranges import RANGES, WHOLE, check_range, shown

THEMES = ("auto", "dark", "light", "ansi")
TABLES = ("chat", "sampling", "ui", "keys", "presets")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_KINDS = {str: "a text in quotes", bool: "true or false"}


@dataclass(frozen=True)
class Setting:
    """One setting. `kind` of a number is float or int; of lists of tokens, tuple."""

    table: str
    name: str
    kind: type
    help: str = ""
    default: Any = None
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name with its table, as in `chat.model`."""
        return f"{self.table}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"MACLLM_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of `macllm chat`."""
        return "--" + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """The value in its final type. Raises: UsageError for a wrong type or range."""
        if self.table == "sampling":
            return _check_sampling(self.name, value)
        if self.kind in (int, float):
            check_range(self.name, value)
        elif not isinstance(value, self.kind):
            raise UsageError(f"{self.name} is {shown(value)}; it must be {_KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            message = f"{self.name} is {shown(value)}; it must be {_listed(self.choices)}"
            raise UsageError(message, remedy=like(str(value), self.choices))
        return value

    def read(self, text: str) -> Any:
        """The value of a text, as in an environment variable. Raises: UsageError."""
        value: Any = text
        if self.kind is bool:
            value = True if text.lower() in _TRUE else False if text.lower() in _FALSE else text
        elif self.kind is tuple:
            value = [_number(part, int) for part in text.strip("[] ").split(",") if part.strip()]
        elif self.kind in (int, float):
            value = _number(text, self.kind)
        return self.check(value)


def _number(text: str, kind: type) -> Any:
    for read in (int,) if kind is int else (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text  # the check says what it must be


def _check_sampling(name: str, value: Any) -> Any:
    from macllm.generation.options import read
    from macllm.generation.request import Request, SamplingParams
    from macllm.generation.sampling.defaults import check

    if name in RANGES:
        check_range(name, value)
    read_value = read({name: value})
    check(Request(prompt=(), sampling=SamplingParams(**read_value)))
    return read_value[name]


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _sampling_kind(name: str) -> type:
    return tuple if name not in RANGES else int if name in WHOLE else float


CHAT = (
    Setting("chat", "model", str, "model: a folder, org/name or org/name@revision", "maclet"),
    Setting("chat", "adapter", str, "LoRA adapter to apply to the model"),
    Setting("chat", "system", str, "system prompt"),
    Setting("chat", "preset", str, "preset to begin with"),
    Setting("chat", "max_tokens", int, "longest answer, in tokens"),
    Setting("chat", "plain", bool, "plain lines instead of the full screen", False),
)
SAMPLING = tuple(Setting("sampling", name, _sampling_kind(name)) for name in sorted(SAMPLING_NAMES))
UI = (
    Setting("ui", "theme", str, "colors of the full screen", "auto", THEMES),
    Setting("ui", "sidebar", bool, "chats beside the conversation from the start, on a wide terminal", False),
)
SETTINGS: Mapping[str, Setting] = {setting.key: setting for setting in (*CHAT, *SAMPLING, *UI)}
PRESET_NAMES = ("system", *sorted(SAMPLING_NAMES))
_KEY_OF = {setting.name: setting.key for setting in SETTINGS.values()}


def setting(key: str) -> Setting:
    """The setting of a key, those of presets included. Raises: UsageError with the nearest key."""
    table, _, name = key.partition(".")
    if table == "presets" and (name := name.rpartition(".")[2]) in PRESET_NAMES:
        return SETTINGS["chat.system" if name == "system" else f"sampling.{name}"]
    if key in SETTINGS:
        return SETTINGS[key]
    raise UsageError(f"unknown setting {key}", remedy=nearest(key))


def nearest(key: str) -> str | None:
    """The key that is most like `key`; None if none is."""
    table, _, name = key.partition(".")
    if table == "presets":
        preset, _, name = name.rpartition(".")
        near = like(name, PRESET_NAMES)
        return f"presets.{preset}.{near}" if near else None
    if near := like(name, (each.name for each in SETTINGS.values() if each.table == table)):
        return f"{table}.{near}"
    if near := like(name or table, _KEY_OF):
        return _KEY_OF[near]
    return like(key, SETTINGS)


def like(name: str, names: Iterable[str]) -> str | None:
    """The one of the names that is most like `name`; None if none is."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(names), n=1)
    return near[0] if near else None
