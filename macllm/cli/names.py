"""Names on this machine that complete a flag or an argument in the shell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from macllm.errors import MacllmError
from macllm.visible import one_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETE = "_MACLLM_COMPLETE"  # variable in which the shell asks for completions
_MOST_CHATS = 50
Complete = Callable[[click.Context, click.Parameter, str], list["CompletionItem"]]


def _completing(names: Callable[[], Iterable[tuple[str, str]]], *, folders: bool = False) -> Complete:
    """A function for click's `shell_complete` from one that gives names and descriptions."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            found = [CompletionItem(name, help=one_line(about)) for name, about in names() if name.startswith(typed)]
        except (MacllmError, OSError):  # the command reports it
            found = []
        return found if found or not folders else [CompletionItem(typed, type="dir")]

    return complete


def _models() -> Iterator[tuple[str, str]]:
    from macllm.hub import list_models

    yield from dict.fromkeys((model.name, "") for model in list_models() if model.problem is None)


def _presets() -> Iterator[tuple[str, str]]:
    from macllm.config.settings import load

    for name, preset in load().presets.items():
        yield name, " ".join((preset.system or "").split())


def _settings() -> Iterator[tuple[str, str]]:
    from macllm.config.schema import SETTINGS
    from macllm_tui.keys import KEYS

    yield from ((setting.key, setting.help) for setting in SETTINGS.values())
    yield from ((f"keys.{scope}.{key.id}", key.help) for scope, keys in KEYS.items() for key in keys)


def _chats() -> Iterator[tuple[str, str]]:
    from macllm.chat.store import Store

    store = Store()
    ids = store.short_ids()
    yield from ((ids.get(chat.id, chat.id), chat.name) for chat in store.list(_MOST_CHATS))


def _runs() -> Iterator[tuple[str, str]]:
    from macllm.train.runs.registry import entries, short_ids

    runs = entries()
    ids = short_ids(runs)
    yield from ((ids[entry.id], entry.folder) for entry in runs)


def recipes(command: str) -> Complete:
    """The recipes of a command, and files."""

    def named() -> Iterator[tuple[str, str]]:
        from macllm.train.recipes import recipes

        yield from ((each.name, each.about) for each in recipes() if command in (each.command, ""))

    complete = _completing(named)

    def with_files(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return complete(ctx, parameter, typed) or [CompletionItem(typed, type="file")]

    return with_files


models = _completing(_models, folders=True)
presets = _completing(_presets)
settings = _completing(_settings)
chats = _completing(_chats)
runs = _completing(_runs, folders=True)
folders = _completing(tuple, folders=True)
