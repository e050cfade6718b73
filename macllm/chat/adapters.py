"""Adapters of a chat: those that are known, and the text by which a user chooses among them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from macllm.errors import ModelNotFoundError, UsageError
from macllm.hub.blend import joined, parse, written

from .models import UsableModel, adapter_in, chosen_adapter

OFF = ("off", "none")
"""Words for no adapter."""


def known_adapters(models: Iterable[UsableModel], used: Iterable[str] = ()) -> list[UsableModel]:
    """The adapters among `models`, and those in other folders that a chat has used."""
    adapters = [model for model in models if model.kind == "adapter"]
    return adapters + other_adapters(adapters, used)


def other_adapters(models: Iterable[UsableModel], used: Iterable[str]) -> list[UsableModel]:
    """The adapters that a chat has used and that `models` lacks."""
    names = {model.name for model in models}
    return [adapter_in(Path(name)) for name in used if name not in names]


def chosen_blend(text: str, adapters: Sequence[UsableModel]) -> str | None:
    """The adapters that a text names, as `macllm.hub.blend.parse` reads them; None for the model alone.

    A text is `off`, or names, titles or folders, each with a weight if it has one: `notes tone:0.5`. Raises:
    ModelNotFoundError for an unknown one, UsageError for an unusable one, a wrong weight, and one given twice.
    """
    if text in OFF:
        return None
    try:
        return _folder(text, adapters)  # a name may have spaces
    except ModelNotFoundError:
        blend = joined(_part(word, adapters) for word in _words(text) if word != "+") or ""
        return written(parse(blend))


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"Cannot read the adapters {text}.", cause=str(error), remedy="/adapter NAME NAME:0.5"
        ) from None


def _part(word: str, adapters: Sequence[UsableModel]) -> str:
    return written({_folder(name, adapters): weight for name, weight in parse(word).items()})


def _folder(name: str, adapters: Sequence[UsableModel]) -> str:
    """The folder of an adapter by its name or title."""
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        return str(folder.absolute())
    found = chosen_adapter(name, adapters)
    if found.problem is not None:
        raise UsageError(f"{found.title} cannot be used.", cause=found.problem, remedy="/adapter lists the others")
    return found.name
