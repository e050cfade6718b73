"""Command-line flags for the fields of a training config."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from macllm.errors import UsageError

from .output import say

if TYPE_CHECKING:
    from pathlib import Path

    from macllm.train.config import TrainConfig

SHORT = {"model": "-m", "data": "-d"}
_MOST_CHOICE_CHARS = 44  # of choices in the name of a value; more are in the text
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


class SettingOption(click.Option):
    """A flag of a setting, with its subject."""

    subject = ""


class SettingsCommand(click.Command):
    """A command whose help has the flags of settings by subject, below the others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each subject."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                title = parameter.subject if isinstance(parameter, SettingOption) else "Options"
                sections.setdefault(title, []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def config_options(config: type[TrainConfig]) -> Callable[..., Any]:
    """Add --set and a flag for every field of `config` to a command.

    It is called with the config and the values of its other parameters. The command's parameters `toml_file` and
    `recipe` (either may be missing or None) name a file or a recipe that flags override; `methods` has the values of
    flags that stand for --method. Raises UsageError if these contradict each other.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        names = {field.name for field in dataclasses.fields(config)}

        def loaded(sets: tuple[str, ...], toml_file: str | None = None, recipe: str | None = None, **given: Any) -> Any:
            fields = {name: value for name, value in given.items() if name in names}
            others = {name: value for name, value in given.items() if name not in names and name != "methods"}
            methods = dict.fromkeys((*given.get("methods", ()), *filter(None, [given.get("method")])))
            if len(methods) > 1:
                raise UsageError(f"method cannot be {' and '.join(methods)} at once", remedy="one of --lora and --full")
            fields["method"] = next(iter(methods), None)
            return function(config.load(_file(config, recipe, toml_file), sets, **fields), **others)

        loaded.__doc__ = function.__doc__
        decorated: Callable[..., Any] = loaded
        for option in reversed(_options(config)):
            decorated = option(decorated)
        return decorated

    return decorate


def options_for(config: type[TrainConfig], names: Container[str]) -> Callable[..., Any]:
    """Add the flags of the fields in `names` to a command; those that are left out are None."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(_flags(config, names)):
            function = option(function)
        return function

    return decorate


def _file(config: type[TrainConfig], recipe: str | None, toml_file: str | None) -> Path | None:
    """The file with settings. Says what the settings of another program mean here."""
    from macllm.train.config import mlx_lm
    from macllm.train.recipes import CONFIGS, is_ambiguous, settings_file

    given = recipe or toml_file
    if recipe and toml_file:
        raise UsageError(f"{recipe} and --config {toml_file} both name settings", remedy="leave one out")
    if given is None:
        return None
    if is_ambiguous(given):
        say(f"settings are read from the file {given} here, not from the recipe of that name")
    path = settings_file(given, next(command for command, kind in CONFIGS.items() if issubclass(config, kind)))
    if path.suffix in mlx_lm.SUFFIXES and config is CONFIGS["finetune"]:
        for note in mlx_lm.read(path).notes:
            say(note)
    return path


def _options(config: type[TrainConfig]) -> list[Callable[..., Any]]:
    sets = click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one setting; may be repeated."
    )
    return [sets, *_flags(config, [item.name for item in dataclasses.fields(config)])]


def _flags(config: type[TrainConfig], names: Container[str]) -> list[Callable[..., Any]]:
    from macllm.train.config.subjects import subjects
    from macllm.train.config.values import settable

    hints = {name: settable(kind) for name, kind in typing.get_type_hints(config).items()}
    explained = config.documentation()
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    options: list[Callable[..., Any]] = []
    for subject, fields in subjects(config).items():
        kind = type(SettingOption.__name__, (SettingOption,), {"subject": subject})
        for name in (field for field in fields if field in names):
            text = f"{_sentence(explained[name])} {_default(name, defaults[name])}".rstrip()
            value = _type(hints[name])
            metavar = _METAVARS.get(value) if isinstance(value, type) else None
            if isinstance(value, click.Choice) and len("|".join(value.choices)) > _MOST_CHOICE_CHARS:
                metavar, text = "NAME", f"{_sentence(explained[name])} One of {', '.join(value.choices)}. "
                text += _default(name, defaults[name])
            flags = _names(name, hints[name])
            options.append(click.option(*flags, default=None, help=text, type=value, metavar=metavar, cls=kind))
    return options


def _names(field: str, kind: Any) -> list[str]:
    flag = field.replace("_", "-")
    names = [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", field]
    return [SHORT[field], *names] if field in SHORT else names


def _type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return kind if kind in (int, float, bool) else str


def _sentence(text: str) -> str:
    capital = text[0].upper() if text.split()[0].replace("-", "").isalpha() else text[0]
    return f"{capital}{text[1:]}."


def _default(name: str, value: Any) -> str:
    """The default, unless the documentation says what an empty value means."""
    if value in ("", ()):
        return "[required]" if name == "data" else ""
    shown = "unset" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"[default: {shown}]"
