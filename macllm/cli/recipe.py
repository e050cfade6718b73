"""`macllm recipe`: settings of runs that come with macllm, to use by name or to copy and change."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from itertools import count
from pathlib import Path

import click

from macllm.errors import UsageError

from . import names
from .output import say


@click.group("recipe")
def command() -> None:
    """List, show and copy recipes: settings of training runs for common purposes.

    macllm finetune NAME and macllm train NAME take them by name; flags override them. A file NAME in the current folder
    is read in place of a recipe.
    """


@command.command("ls")
def ls() -> None:
    """List the recipes, each with its command and purpose."""
    from macllm.train.recipes import recipes

    found = recipes()
    width = max(len(each.name) for each in found)
    for each in found:
        click.echo(f"{each.name:{width}}  {each.command:8}  {each.about}")


@command.command("show")
@click.argument("name", shell_complete=names.recipes(""))
def show(name: str) -> None:
    """Print the recipe NAME with the documentation of each setting, and the others with their defaults."""
    from macllm.train.recipes import find

    click.echo(find(name).text(), nl=False)


@command.command("cp")
@click.argument("name", shell_complete=names.recipes(""))
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
def cp(name: str, file: Path | None) -> None:
    """Write the recipe NAME to FILE (NAME.toml), for changes of your own.

    Files that exist are not replaced without a question. Prints the path.
    """
    from macllm.train.recipes import find

    recipe, path = find(name), file or Path(f"{name}.toml")
    if path.suffix != ".toml":
        raise UsageError(
            f"{path} does not end in .toml",
            remedy=shlex.join(["macllm", "recipe", "cp", name, str(path.with_suffix(".toml"))]),
        )
    beside = {found: path.parent / found.name for found in recipe.files()}
    for target in (path, *beside.values()):
        _check_replaceable(target, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe.text(), encoding="utf-8")
    for source, target in beside.items():
        shutil.copyfile(source, target)
        say(f"{target} is copied beside it")
    click.echo(path)


def _check_replaceable(path: Path, name: str) -> None:
    """Ask whether a file may be replaced. Raises: UsageError without a terminal, click.Abort after a no."""
    if not os.path.lexists(path):
        return
    if not sys.stdin.isatty() or not path.is_file():
        raise UsageError(
            f"{path} exists", remedy=shlex.join(["macllm", "recipe", "cp", name, f"{_free(path.parent)}/{name}.toml"])
        )
    click.confirm(f"{path} exists. Replace it?", abort=True, err=True)


def _free(folder: Path) -> Path:
    """A folder beside this one that does not exist."""
    names = (folder / f"recipe-{number}" for number in count(2))
    return next(path for path in names if not os.path.lexists(path))
