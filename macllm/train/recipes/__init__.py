"""Recipes: settings of runs that come with macllm, as TOML files, one folder for each command."""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from macllm.errors import UsageError

from ..config import FinetuneConfig, PretrainConfig, TrainConfig
from ..config.subjects import subjects

CONFIGS: dict[str, type[TrainConfig]] = {"finetune": FinetuneConfig, "train": PretrainConfig}
_FOLDER = Path(__file__).parent
_WIDTH = 100
# Settings that each user gives for themselves: the commands in the recipes name them.
_OWN = ("data", "model", "resume")


@dataclass(frozen=True)
class Recipe:
    """A recipe of a command."""

    name: str
    command: str  # finetune or train
    path: Path

    @property
    def config(self) -> type[TrainConfig]:
        """The config whose fields it sets."""
        return CONFIGS[self.command]

    @property
    def about(self) -> str:
        """The first line."""
        return _header(self.path)[0].lstrip("# ")

    def text(self) -> str:
        """The recipe with the documentation of its settings, and all others with their defaults in comments."""
        return written(self.config, _header(self.path), self.path)

    def files(self) -> list[Path]:
        """Files beside the recipe that it names."""
        values = tomllib.loads(self.path.read_text(encoding="utf-8"))
        return [found for value in values.values() if isinstance(value, str) and (found := _beside(self.path, value))]


def recipes() -> list[Recipe]:
    """All recipes, by command and name."""
    return [Recipe(path.stem, path.parent.name, path) for path in sorted(_FOLDER.glob("*/*.toml"))]


def find(name: str) -> Recipe:
    """The recipe of this name. Raises: UsageError."""
    found = {each.name: each for each in recipes()}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        remedy = f"did you mean {near[0]}?" if near else "macllm recipe ls"
        raise UsageError(f"there is no recipe {name}", remedy=remedy)
    return found[name]


def settings_file(given: str, command: str) -> Path:
    """The file of a path or of a recipe's name, for a command.

    A file of that name comes first; a folder of that name, as a run's, does not matter. Raises: UsageError.
    """
    path = Path(given)
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    recipe = find(given)
    if recipe.command != command:
        raise UsageError(f"{given} is a recipe of another command", remedy=f"macllm {recipe.command} {given}")
    return recipe.path


def is_ambiguous(given: str) -> bool:
    """True for the name of a recipe that a file has too."""
    return Path(given).is_file() and any(each.name == given for each in recipes())


def written(kind: type[TrainConfig], header: list[str], path: Path) -> str:
    """The settings of a TOML file by subject, each with its documentation; the others in comments.

    A comment behind a value says why it is so, and stays. Raises: KeyError for a setting that `kind` does not have.
    """
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    reasons = _reasons(path)
    documentation, defaults = kind.documentation(), {f.name: f.default for f in fields(kind)}
    lines = [*header, ""]
    for title, names in subjects(kind).items():
        lines += [f"# {title}", ""]
        for name in names:
            if name in _OWN and name not in values:
                continue
            lines += _wrapped(f"{documentation[name]}.{reasons.get(name, '')}")
            value = values.get(name, defaults[name])
            assigned = f"{name} = {_toml(False if value is None else value)}"  # TOML has no unset value
            lines += [assigned if name in values else f"# {assigned}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _header(path: Path) -> list[str]:
    """The comment at the beginning of a file."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return lines


def _reasons(path: Path) -> dict[str, str]:
    """The comments behind values, as sentences after a blank."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, rest = line.partition(" = ")
        if equals and not line.startswith("#") and "  # " in rest:
            found[name] = f" Here: {rest.rsplit('  # ', 1)[1].strip()}."
    return found


def _beside(recipe: Path, value: str) -> Path | None:
    path = recipe.parent / value
    return path if value and path.is_file() else None


def _wrapped(text: str) -> list[str]:
    import textwrap

    return [f"# {line}" for line in textwrap.wrap(text[:1].upper() + text[1:], _WIDTH)]


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return repr(value)
