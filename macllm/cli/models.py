"""`macllm models`: list, download, verify and remove models."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from macllm.errors import ModelNotFoundError, UsageError
from macllm.units import bytes_text, short_count_text
from macllm.visible import cells, fitted, unbroken

from . import names
from .fetch import get
from .output import say, working

if TYPE_CHECKING:
    from macllm.chat.models import UsableModel

NAME_HELP = "NAME is org/name, org/name@revision or a folder."
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("models", epilog=NAME_HELP, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, find, download, show, verify and remove models."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("ls")
@click.option("-a", "--all", "with_catalogue", is_flag=True, help="List recommended models to download, too.")
@_JSON
def ls(with_catalogue: bool, as_json: bool) -> None:
    """List models and adapters on this machine.

    Models of the Hugging Face cache, those of LM Studio, and those in the folders named by MACLLM_MODELS. "fits" is
    the context that fits into memory; tok/s was measured here, or is estimated (~) from the measured bandwidth.
    """
    from macllm.chat import model_columns as columns
    from macllm.chat.models import usable_models

    models = [model for model in usable_models() if with_catalogue or model.kind != "catalogue"]
    if as_json:
        click.echo(json.dumps([_as_json(model) for model in models], indent=2))
        return
    rows = [
        (
            model.name,
            model.shape.quantization or "-",
            columns.size_text(model),
            columns.context_text(model),
            columns.fit_text(model),
            columns.speed_text(model),
            columns.status_text(model),
        )
        for model in models
    ]
    _print_table([("name", "weights", "size", "context", "fits", "tok/s", "status"), *rows])


def _as_json(model: UsableModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "revision": model.revision,
        "commit": model.commit,
        "path": str(model.path) if model.path else None,
        "size_bytes": model.size_bytes,
        "problem": model.problem,
        "family": model.shape.family,
        "weights": model.shape.quantization,
        "context_tokens": model.shape.context_tokens,
        "fitting_tokens": model.fit.tokens if model.fit else None,
        "over_bytes": model.fit.over_bytes if model.fit else None,
        "tokens_per_second": round(model.speed.tokens_per_second, 2) if model.speed else None,
        "speed_is_measured": model.speed.measured if model.speed else None,
        "base": model.base or None,
        "licence": model.licence or None,
        "use": model.use or None,
    }


@command.command("search")
@click.argument("words", nargs=-1, required=True)
@click.option("-n", "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="Number of models.")
@_JSON
def search(words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Find models on the hub by words of their names, the most downloaded first.

    Only those with safetensors weights that generate text. `macllm models show NAME` says if one fits into memory.
    """
    from macllm.hub import list_models, searching

    here = {model.name for model in list_models() if model.problem is None}
    found = searching.search(" ".join(words), limit)
    if as_json:
        click.echo(json.dumps([{**vars(model), "is_here": model.name in here} for model in found], indent=2))
    elif not found:
        say(f"the hub has no model with {' '.join(words)} in its name")
    else:
        rows = [
            (model.name, model.weights or "-", short_count_text(model.downloads), model.licence or "-",
             "on disk" if model.name in here else "remote")
            for model in found
        ]  # fmt: skip
        _print_table([("name", "weights", "downloads", "licence", "status"), *rows])


@command.command("default")
@click.argument("name", required=False, shell_complete=names.models)
@click.option("--unset", is_flag=True, help="Go back to the bundled model.")
@_JSON
def default(name: str | None, unset: bool, as_json: bool) -> None:
    """Print the model that is used without --model, or make NAME it.

    NAME must be on this machine: `macllm models get NAME` downloads it.
    """
    from .config import remove, write
    from .configured import configured

    if unset:
        remove("chat.model")
    elif name is not None:
        from macllm.hub import resolve
        from macllm.hub.names import local_folder

        folder = local_folder(name)
        try:
            resolve(name, offline=True)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{name} is not whole on this machine", cause=error.cause, remedy=f"macllm models get {name}"
            ) from error
        write("chat.model", str(folder) if folder else name)
    found = configured({}, {}).settings.get("chat.model")
    model, origin = (found.value, found.source) if found is not None else ("maclet", "default")
    click.echo(json.dumps({"name": model, "origin": origin}, indent=2) if as_json else model)


@command.command("get")
@click.argument("name", shell_complete=names.models)
@_JSON
def get_model(name: str, as_json: bool) -> None:
    """Download or update a model and print its folder."""
    folder = get(name)
    click.echo(json.dumps({"name": name, "path": str(folder)}, indent=2) if as_json else folder)


@command.command("show")
@click.argument("name", default="maclet", shell_complete=names.models)
@_JSON
def show(name: str, as_json: bool) -> None:
    """Show a model's metadata without downloading its weights."""
    from macllm.chat import model_columns as columns
    from macllm.chat.models import described
    from macllm.hub import describe

    found = describe(name)
    model = described(found)
    if as_json:
        facts = {"name": found.name, "revision": found.revision, "commit": found.commit, "config": dict(found.config)}
        facts |= {"path": str(found.path) if found.path else None, "size_bytes": found.size_bytes}
        facts |= {"missing_bytes": found.missing_bytes, "files": dict(found.files)}
        facts |= {key: value for key, value in _as_json(model).items() if key not in facts}
        click.echo(json.dumps(facts, indent=2))
        return
    config: dict[str, Any] = {**found.config, **_part(found.config, "text_config")}
    facts = {
        "name": found.name,
        "revision": found.revision,
        "commit": found.commit,
        "folder": found.path or "not downloaded",
        "size": bytes_text(found.size_bytes),
        "to download": bytes_text(found.missing_bytes) if found.missing_bytes else "",
        "family": config.get("model_type", ""),
        "context": model.shape.context_tokens or "",
        "fits": columns.fit_text(model) if model.fit else "",
        "tok/s": columns.speed_text(model) if model.speed else "",
        "layers": model.shape.layers or "",
        "vocabulary": config.get("vocab_size", ""),
        "weights": model.shape.quantization,
    }
    _print_table([(name, str(value)) for name, value in facts.items() if value != ""])
    click.echo("files")
    _print_table([(f"  {file}", bytes_text(size)) for file, size in found.files])


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under `name` in a config; {} if absent or not an object."""
    part = config.get(name)
    return part if isinstance(part, Mapping) else {}


@command.command("verify")
@click.argument("name", shell_complete=names.models)
@click.option("--repair", is_flag=True, help="Download damaged and missing files again.")
@_JSON
def verify(name: str, repair: bool, as_json: bool) -> int:
    """Check the files of a downloaded model against their hashes.

    Exits with 1 if a file is damaged or missing.
    """
    from macllm import hub

    found: list[hub.FileCheck] = []
    checks = hub.verify(name, repair=repair)
    while True:
        with working("checking"):
            checked = next(checks, None)
        if checked is None:
            break
        found.append(checked)
        if not as_json:
            click.echo(f"{checked.status:<8} {checked.file}")
    if as_json:
        click.echo(json.dumps([vars(checked) for checked in found], indent=2))
    wrong = sum(checked.status in ("damaged", "missing") for checked in found)
    if wrong and repair:
        folder = get(name)
        if not as_json:
            click.echo(folder)
        return 0
    if wrong:
        files = "1 file is" if wrong == 1 else f"{wrong} files are"
        say(f"{files} damaged or missing; macllm models verify --repair {name} downloads them again")
    return 1 if wrong else 0


@command.command("rm")
@click.argument("name", shell_complete=names.models)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_JSON
def rm(name: str, yes: bool, as_json: bool) -> None:
    """Delete a downloaded model, or one revision of it (name@revision)."""
    from macllm.hub import list_models, remove

    repo, _, revision = name.partition("@")
    sizes = [
        model.size_bytes
        for model in list_models()
        if model.name == repo and model.revision != "bundled" and revision in ("", model.revision, model.commit)
    ]
    if sizes and not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("removing asks on a terminal", remedy=f"macllm models rm --yes {name}")
        click.confirm(f"remove {name}, {bytes_text(sum(sizes))}?", abort=True, err=True)
    freed = remove(name)
    if as_json:
        click.echo(json.dumps({"name": name, "freed_bytes": freed}, indent=2))
    else:
        say(f"freed {bytes_text(freed)}")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    shown = [[unbroken(cell) for cell in row] for row in rows]
    widths = [max(cells(cell) for cell in column) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  ".join(fitted(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
